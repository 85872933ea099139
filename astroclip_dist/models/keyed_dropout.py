"""Dropout whose masks depend on the sample and its epoch alone: the same for every world size, micro-batch, restart."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# SplitMix64 (see ``data.draws``) on the device; torch has signed integers only, whose products wrap alike.
_GOLDEN, _FIRST, _SECOND = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def keyed_dropout(values: Tensor, probability: float, keys: Tensor, purpose: int) -> Tensor:
    """Zero each element with a probability, and scale the others up so that the expectation stays.

    Args:
        values: (n, ...) of n samples.
        keys: (n,) int64, one for each sample and epoch.
        purpose: tells the masks of one layer from another's.
    """
    each = math.prod(values.shape[1:])
    counters = torch.arange(1, each + 1, device=keys.device) * _GOLDEN
    bits = _mix(_mix(keys + purpose)[:, None] + counters)
    # 63 random bits against the threshold.
    dropped = _shifted(bits, 1) < int(probability * 2**63)
    return values.masked_fill(dropped.view(values.shape), 0.0) / (1 - probability)


def _mix(values: Tensor) -> Tensor:
    values = (values ^ _shifted(values, 30)) * _FIRST
    values = (values ^ _shifted(values, 27)) * _SECOND
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shifted right with zeros from the left, as unsigned integers are."""
    return (values >> bits) & (2 ** (64 - bits) - 1)
