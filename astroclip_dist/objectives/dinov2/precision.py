"""In what precision targets and losses are computed, whatever the model's is."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """In float32, or in float64 if they are in that."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def as_written(values: Tensor) -> torch.autocast:
    """A context in which matrix products keep the precision of their inputs, also inside of an autocast region."""
    return torch.autocast(values.device.type, enabled=False)
