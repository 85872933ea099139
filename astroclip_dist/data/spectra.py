"""Spectra to the tokens of the spectrum encoder: z-score, overlapping slices, a token for mean and spread."""

from __future__ import annotations

import torch
from torch import Tensor

# Spectra of pure noise would blow up without a floor (AstroCLIP's code; 1e-17 erg/s/cm2/A).
MIN_STD = 0.2


def num_tokens(size: int, slice_size: int, slice_stride: int) -> int:
    """Tokens of a spectrum of ``size`` bins: the slices that fit whole, and the mean/std token in front."""
    return (size - slice_size) // slice_stride + 2


def slice_spectra(flux: Tensor, slice_size: int, slice_stride: int) -> Tensor:
    """Standardise each spectrum and cut it into overlapping slices (AstroCLIP section 3.2).

    Args:
        flux: (n, bins), 1e-17 erg/s/cm2/A.

    Returns:
        (n, tokens, slice_size + 2) float32. Token 0 holds [(mean - 2) / 2, (std - 2) / 8, 0, ...], so that the
        brightness that the z-score takes away stays known; the other tokens hold two zeros and a slice.
    """
    flux = flux.float()
    mean = flux.mean(dim=1, keepdim=True)
    std = flux.std(dim=1, keepdim=True).clamp_min(MIN_STD)
    slices = ((flux - mean) / std).unfold(1, slice_size, slice_stride)
    tokens = flux.new_zeros(len(flux), slices.shape[1] + 1, slice_size + 2)
    tokens[:, 0, :2] = torch.cat([(mean - 2) / 2, (std - 2) / 8], dim=1)
    tokens[:, 1:, 2:] = slices
    return tokens
