"""From tokens of ``data.preprocessing.spectra.slice_spectra`` back to spectra."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_and_std(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What the z-score took away, from token 0 of (n, tokens, slice_size + 2): (n, 1) each, 1e-17 erg/s/cm2/A."""
    return tokens[:, 0, :1] * 2 + 2, tokens[:, 0, 1:2] * 8 + 2


def join_slices(slices: Tensor, chosen: Tensor, size: int, slice_stride: int) -> tuple[Tensor, Tensor]:
    """Lay some slices of each spectrum back onto its bins, averaged where they overlap.

    Args:
        slices: (n, slices, slice_size).
        chosen: (n, slices) bool, which of them.
        size: bins of a spectrum.

    Returns:
        (n, size), 0 where no chosen slice lies, and (n, size) int64, how many lie there.
    """
    count = slices.shape[1]
    starts = torch.arange(count, device=slices.device) * slice_stride
    bins = (starts[:, None] + torch.arange(slices.shape[2], device=slices.device)).flatten()
    total = slices.new_zeros(len(slices), size)
    total.index_add_(1, bins, torch.where(chosen[..., None], slices, 0.0).flatten(1))
    covered = torch.zeros(len(slices), size, dtype=torch.int64, device=slices.device)
    covered.index_add_(1, bins, chosen[..., None].expand_as(slices).flatten(1).long())
    return total / covered.clamp_min(1), covered
