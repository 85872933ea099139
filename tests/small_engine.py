"""An engine whose state is made in no time, for tests of what happens to states."""

from __future__ import annotations

from torch import Tensor, nn

from astroclip_dist.config.engine import DdpEngine
from astroclip_dist.config.run import Optimizer
from astroclip_dist.models.initial import InitialValues
from astroclip_dist.parallel.engines.ddp import Ddp
from astroclip_dist.parallel.process_group import Ranks


class Small(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 8), nn.Linear(8, 8))

    def forward(self, values: Tensor) -> Tensor:
        return self[1](self[0](values))


def small_engine(ranks: Ranks) -> Ddp:
    module = Small()
    return Ddp(DdpEngine(), ranks, module, Optimizer(lr=1e-3), InitialValues(module, seed=0))


def fill(engine: Ddp, step: int) -> None:
    """Let every number of the state be that of the step, so that parts of two saves cannot be mixed up."""
    for tensor in engine.state().values():
        tensor.detach().fill_(step)
