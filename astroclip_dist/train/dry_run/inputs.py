"""Inputs of an objective that come from no data, and the tensors in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from astroclip_dist.data.ordering.order import Cursor
from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.data.streaming.stream import Batch


def batch_like(image: ImageLayout | None, spectrum: SpectrumLayout | None, members: Iterable[str], count: int) -> Batch:
    """One rank's batch in the data's shapes: of galaxies that look alike, with identities of their own."""
    arrays: dict[str, Tensor] = {}
    for member in members:
        layout = image if member == "image" else spectrum
        assert layout is not None
        arrays[member] = torch.ones(count, *layout.shape, dtype=getattr(torch, layout.dtype))
        # Not flat: a spectrum is divided by its standard deviation.
        arrays[member][..., ::2] = 2
    ids = np.random.default_rng(0).integers(0, 2**63, count, dtype=np.uint64)
    return Batch(Cursor(), [str(number) for number in ids], ids, np.zeros(count, np.int64), arrays)


def mapped(inputs: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """What ``Objective.prepare`` gave, with another tensor for each of its tensors."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, list):
        return [mapped(part, function) for part in inputs]
    if dataclasses.is_dataclass(inputs) and not isinstance(inputs, type):
        fields = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
        return type(inputs)(**{name: mapped(value, function) for name, value in fields.items()})
    return inputs
