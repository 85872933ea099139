"""Gaussian noise that follows from key and pixel: the same in any batch, on CPU and GPU, bit for bit.

The bits are SplitMix64 (Steele, Lea and Flood 2014) of key + counter, as in ``data.draws``, in integer arithmetic of
torch. Sixteen bits make a normal number: they choose one of 65,536 equally probable parts of the normal distribution,
whose mean it takes. So one 64-bit hash serves four pixels, and no logarithm, root or sine is computed whose last bit
depends on the device. The numbers have mean 0 and variance 1 exactly, their distribution is within 2^-17 of the normal
one everywhere, and the largest is 4.4.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

_LEVELS = 1 << 16
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)


def standard_normal(keys: Tensor, count: int) -> Tensor:
    """Normal numbers of mean 0 and variance 1.

    Args:
        keys: (n,) int64, one a plane.
        count: numbers of each.

    Returns:
        (n, count) float32, on the keys' device. Number k of a key does not depend on ``count``.
    """
    counters = torch.arange(1, -(-count // 4) + 1, device=keys.device) * _GOLDEN
    bits = mix(keys[:, None] + counters).view(torch.int16)
    places = bits.to(torch.int32)
    places += _LEVELS // 2
    return _normal_levels(keys.device).index_select(0, places.view(-1)).view(len(keys), -1)[:, :count]


def mix(values: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place; torch's int64 is read as unsigned."""
    shifted = torch.empty_like(values)
    for shift, factor in ((30, _MIX1), (27, _MIX2), (31, None)):
        torch.bitwise_right_shift(values, shift, out=shifted)
        shifted &= (1 << (64 - shift)) - 1  # torch shifts the sign in
        values ^= shifted
        if factor is not None:
            values *= factor
    return values


@lru_cache
def _normal_levels(device: torch.device) -> Tensor:
    """(65536,) float32: means of as many equally probable parts of the normal distribution, scaled to variance 1."""
    edges = ndtri(np.arange(1, _LEVELS) / _LEVELS)
    density = np.concatenate([[0.0], np.exp(-0.5 * edges**2), [0.0]]) / np.sqrt(2 * np.pi)
    means = (density[:-1] - density[1:]) * _LEVELS
    return torch.from_numpy((means / means.std()).astype(np.float32)).to(device)
