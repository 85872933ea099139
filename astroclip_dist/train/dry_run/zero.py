"""DeepSpeed ZeRO without DeepSpeed, which needs memory to be there: activations measured, states by formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from astroclip_dist.config.engine import DeepSpeedEngine
from astroclip_dist.parallel.engines.base import Engine
from astroclip_dist.parallel.engines.parameter_groups import StepRates
from astroclip_dist.parallel.process_group import Ranks

# Elements: the engine's own bucket, and what ZeRO 3 keeps gathered by default (stage3_max_live_parameters).
_BUCKET, _GATHERED = 50_000_000, 1_000_000_000


def zero_states(config: DeepSpeedEngine, world_size: int, trained: int, frozen: int) -> dict[str, int]:
    """Bytes of states on one rank, while activations are at their peak (Rajbhandari et al. 2020, section 5).

    Args:
        trained, frozen: numbers of parameters.
    """
    size, stage = dtype_of(config).itemsize, config.zero_stage
    parameters_over, gradients_over = (world_size if stage == 3 else 1), (world_size if stage >= 2 else 1)
    # The engine keeps fp32 values of frozen parameters where the module computes in bf16.
    exact = 4 if size == 2 else 0
    states = {
        "parameters": size * trained / parameters_over,
        "frozen parameters, EMA teacher": (size + exact) * frozen / parameters_over,
        # The bucket is allotted whole, however small the model.
        "gradients": size * (trained / gradients_over + _BUCKET),
        # Weights and two moments, fp32.
        "optimizer state": 12 * trained / world_size,
    }
    if stage == 3:
        states["gathered parameters and gradients on their way"] = size * min(trained + frozen, _GATHERED)
    return {kind: round(held) for kind, held in states.items() if held}


def dtype_of(config: DeepSpeedEngine) -> torch.dtype:
    """What the module computes in."""
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


class UnshardedEngine(Engine):
    """Holds the whole module in the engine's precision; what it does with gradients does not matter."""

    def __init__(self, config: DeepSpeedEngine, ranks: Ranks, module: nn.Module) -> None:
        """``module``: on the meta device, of ``dtype_of(config)``."""
        super().__init__(ranks, module)
        self._dtype = dtype_of(config)
        module.to_empty(device=ranks.device)

    def _forward(self, *inputs: Any) -> Any:
        return self.module(*tree_map(self._cast, inputs))

    def _cast(self, value: Any) -> Any:
        return value.to(self._dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def _backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self, rates: StepRates) -> Tensor:
        self.discard()
        return torch.zeros(())

    def average(self, teacher: nn.Module, student: nn.Module, momentum: float) -> None:
        """Nothing that takes memory."""

    def discard(self) -> None:
        self.module.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        return {}

    def loaded(self) -> None:
        """There is no state."""
