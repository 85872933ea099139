"""DistributedDataParallel: all parameters on every rank."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from astroclip_dist.config.engine import DdpEngine
from astroclip_dist.config.run import Optimizer
from astroclip_dist.models.initial import InitialValues, initialise
from astroclip_dist.parallel.engines.base import TorchEngine
from astroclip_dist.parallel.process_group import Ranks


class Ddp(TorchEngine):
    """Gradients averaged over ranks by all-reduce, overlapped with backward."""

    def __init__(
        self, config: DdpEngine, ranks: Ranks, module: nn.Module, optimizer: Optimizer, values: InitialValues
    ) -> None:
        initialise(module, values, ranks.device)
        super().__init__(ranks, module, optimizer)
        devices = [ranks.device] if ranks.device.type == "cuda" else None
        self._wrapped = DistributedDataParallel(
            module,
            device_ids=devices,
            gradient_as_bucket_view=True,
            # All ranks have drawn the same values.
            init_sync=False,
            forward_sync_buffers=False,
        )
        self._bf16 = config.precision == "bf16"

    def _forward(self, *inputs: Tensor | None) -> Any:
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self._bf16):
            return self._wrapped(*inputs)

    def _backward(self, loss: Tensor, *, last: bool) -> None:
        # Gradients are averaged by the backward that runs outside of no_sync, together with what was accumulated.
        with nullcontext() if last else self._wrapped.no_sync():
            loss.backward()
