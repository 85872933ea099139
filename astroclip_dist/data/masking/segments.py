"""Masks of contiguous segments, for masked modelling of spectra (AstroCLIP sections 2.2 and 5.2)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from astroclip_dist.data.draws import uniform
from astroclip_dist.errors import ConfigError


def segment_masks(ids: np.ndarray, key: int, tokens: int, segments: int, width: int) -> Tensor:
    """Draw a mask for each spectrum: one segment in each of equal parts of the sequence, anywhere in its part.

    Token 0 holds the mean and the standard deviation of the spectrum, by which all others are scaled; it is no place on
    the wavelength axis, and is never masked. AstroCLIP's code cuts the sequence into parts with it, and so masks it by
    accident when the first segment starts there.

    Args:
        ids: (n,) uint64, identities of samples (``Batch.draw_ids``).
        key: ``data.draws.stream_key`` of the seed.
        tokens: length of the sequence, with token 0.
        segments: in how many parts it is cut (AstroCLIP: 6).
        width: of a segment, tokens (AstroCLIP: 30 in the paper, 50 in the code).

    Returns:
        (n, tokens) bool on the CPU; True, for exactly segments x width tokens: to be predicted.

    Raises:
        ConfigError: a segment that is wider than the shortest part.
    """
    bounds = 1 + np.arange(segments + 1) * (tokens - 1) // segments
    parts = np.diff(bounds)
    if width > parts.min():
        raise ConfigError(
            "objective.mask_width",
            width,
            f"Each of {segments} segments lies in its own part of the {tokens - 1} tokens: at most {parts.min()}.",
        )
    starts = bounds[:-1] + np.floor(uniform(key, ids, segments) * (parts - width + 1)).astype(np.int64)
    masks = np.zeros((len(ids), tokens), bool)
    masked = starts[:, :, None] + np.arange(width)
    np.put_along_axis(masks, masked.reshape(len(ids), segments * width), True, axis=1)
    return torch.from_numpy(masks)
