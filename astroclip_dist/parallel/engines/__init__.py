"""Engines by name: how parameters are laid over ranks."""

from __future__ import annotations

from torch import nn

from astroclip_dist.config.engine import DdpEngine, DeepSpeedEngine, FsdpEngine
from astroclip_dist.config.run import RunConfig
from astroclip_dist.models.initial import InitialValues, Pretrained
from astroclip_dist.models.transformer import Block
from astroclip_dist.parallel.engines.base import Engine
from astroclip_dist.parallel.engines.parameter_groups import StepRates
from astroclip_dist.parallel.process_group import Ranks


def build_engine(config: RunConfig, ranks: Ranks, module: nn.Module, pretrained: Pretrained | None = None) -> Engine:
    """Lay a module over ranks as the run's configuration says, and give it its first values.

    Args:
        module: of which names and shapes alone are used; it may be on the meta device.
        pretrained: values to start from, where there are some, instead of those drawn from the run's seed.
    """
    engine, optimizer = config.engine, config.optimizer
    values = InitialValues(module, config.seed, pretrained)
    for block in module.modules():
        if isinstance(block, Block):
            block.recompute = engine.recompute
            if engine.compile:
                block.compile()
    # Imported when chosen: deepspeed alone costs seconds, and needs not be there for the others.
    if isinstance(engine, DdpEngine):
        from astroclip_dist.parallel.engines.ddp import Ddp

        return Ddp(engine, ranks, module, optimizer, values)
    if isinstance(engine, FsdpEngine):
        from astroclip_dist.parallel.engines.fsdp import Fsdp

        return Fsdp(engine, ranks, module, optimizer, values)
    assert isinstance(engine, DeepSpeedEngine)
    from astroclip_dist.parallel.engines.deepspeed import DeepSpeedZero

    micro_batches = config.local_batch // config.micro_batch
    return DeepSpeedZero(engine, ranks, module, optimizer, values, micro_batches, config.micro_batch)


__all__ = ["Engine", "StepRates", "build_engine"]
