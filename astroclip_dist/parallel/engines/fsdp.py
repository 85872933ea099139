"""FSDP2: parameters, gradients and optimizer state sharded over ranks, block by block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from astroclip_dist.config.engine import FsdpEngine
from astroclip_dist.config.run import Optimizer
from astroclip_dist.models.transformer import Block
from astroclip_dist.parallel.engines.base import TorchEngine
from astroclip_dist.parallel.process_group import Ranks


class Fsdp(TorchEngine):
    """Each transformer block is gathered when it is needed; gradients are reduced in fp32."""

    def __init__(self, config: FsdpEngine, ranks: Ranks, module: nn.Module, optimizer: Optimizer) -> None:
        mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
        policy = (
            MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            if config.precision == "bf16"
            else MixedPrecisionPolicy()
        )
        module.to(ranks.device)
        for block in [part for part in module.modules() if isinstance(part, Block)]:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        self._sharded: FSDPModule = fully_shard(module, mesh=mesh, mp_policy=policy)
        super().__init__(ranks, module, optimizer)

    def forward(self, *inputs: Tensor | None) -> Any:
        return self.module(*inputs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._sharded.set_requires_gradient_sync(last)
        loss.backward()

    def state(self) -> dict[str, Tensor]:
        # After a forward without backward the root's parameters are still gathered.
        self._sharded.reshard()
        return super().state()
