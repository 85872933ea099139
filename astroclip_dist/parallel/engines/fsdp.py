"""FSDP2: parameters, gradients and optimizer state sharded over ranks, block by block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from astroclip_dist.config.engine import FsdpEngine
from astroclip_dist.config.run import Optimizer
from astroclip_dist.models.initial import InitialValues
from astroclip_dist.models.prototype_head import PrototypeHead
from astroclip_dist.models.transformer import Block
from astroclip_dist.parallel.engines.base import TorchEngine
from astroclip_dist.parallel.process_group import Ranks

# What is gathered as a whole, and freed again, while the rest of the model stays sharded.
UNITS = (Block, PrototypeHead)


class Fsdp(TorchEngine):
    """Each transformer block is gathered when it is needed; gradients are reduced in fp32."""

    def __init__(
        self, config: FsdpEngine, ranks: Ranks, module: nn.Module, optimizer: Optimizer, values: InitialValues
    ) -> None:
        mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
        policy = (
            MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            if config.precision == "bf16"
            else MixedPrecisionPolicy()
        )
        for unit in [part for part in module.modules() if isinstance(part, UNITS)]:
            fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=config.reshard_after_forward)
        self._sharded: FSDPModule = fully_shard(module, mesh=mesh, mp_policy=policy)
        _prefetch(module, config.prefetch)
        module.to_empty(device=ranks.device)
        _fill(module, values)
        super().__init__(ranks, module, optimizer)

    def _forward(self, *inputs: Tensor | None) -> Any:
        return self.module(*inputs)

    def _backward(self, loss: Tensor, *, last: bool) -> None:
        self._sharded.set_requires_gradient_sync(last)
        loss.backward()

    def average(self, teacher: nn.Module, student: nn.Module, momentum: float) -> None:
        self._reshard()
        super().average(teacher, student, momentum)

    def state(self) -> dict[str, Tensor]:
        self._reshard()
        return super().state()

    def _reshard(self) -> None:
        """After a forward without backward, what is not freed at once is still gathered."""
        for part in self.module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def _prefetch(module: nn.Module, ahead: int) -> None:
    """Let each block gather the ``ahead`` blocks that follow it: in forward those of its encoder, in backward all that
    are trained."""
    if not ahead:
        return
    stacks = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    # Blocks that fully_shard has made FSDPModules as well.
    encoders: list[list[Any]] = [[block for block in stack if isinstance(block, FSDPModule)] for stack in stacks]
    for blocks in encoders:
        for number, block in enumerate(blocks):
            block.set_modules_to_forward_prefetch(blocks[number + 1 : number + 1 + ahead])
    trained = [block for blocks in encoders for block in blocks if any(p.requires_grad for p in block.parameters())]
    for number, block in enumerate(trained):
        following = trained[max(0, number - ahead) : number][::-1]
        # Told of none, FSDP2 gathers what ran before in forward: a teacher, for which there is no backward.
        block.set_modules_to_backward_prefetch(following or [block])


@torch.no_grad()
def _fill(module: nn.Module, values: InitialValues) -> None:
    """Give each rank its part of the first values; whole tensors exist one at a time."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)
        value = values(name)
        if isinstance(tensor, DTensor):
            shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
            mine = tuple(slice(first, first + size) for first, size in zip(offset, shape, strict=True))
            tensor.to_local().copy_(value[mine])
        else:
            tensor.copy_(value)
