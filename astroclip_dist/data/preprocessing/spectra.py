"""Spectra to the tokens of the spectrum encoder: z-score, overlapping slices, a token for mean and spread."""

from __future__ import annotations

import torch
from torch import Tensor

# Spectra of pure noise would blow up without a floor (AstroCLIP's code; 1e-17 erg/s/cm2/A).
MIN_STD = 0.2


def num_tokens(size: int, slice_size: int, slice_stride: int) -> int:
    """Tokens of a spectrum of ``size`` bins: the slices that fit whole, and the mean/std token in front."""
    return (size - slice_size) // slice_stride + 2


def slice_spectra(
    flux: Tensor, slice_size: int, slice_stride: int, ivar: Tensor | None = None, *, weighted_mean: bool = False
) -> Tensor:
    """Standardise each spectrum and cut it into overlapping slices (AstroCLIP section 3.2).

    Args:
        flux: (n, bins), 1e-17 erg/s/cm2/A.
        ivar: (n, bins), inverse variance of the flux; 0 = masked. If given, masked bins count neither for the mean nor
            for the standard deviation, and are 0 after the z-score, the mean. A spectrum without a good bin becomes 0.
        weighted_mean: weight the mean by inverse variance. The deviation is that of all good bins from it, each alike.

    Returns:
        (n, tokens, slice_size + 2) float32. Token 0 holds [(mean - 2) / 2, (std - 2) / 8, 0, ...], so that the
        brightness that the z-score takes away stays known; the other tokens hold two zeros and a slice.
    """
    flux = flux.float()
    if ivar is None:
        mean = flux.mean(dim=1, keepdim=True)
        std = flux.std(dim=1, keepdim=True)
        scores = (flux - mean) / std.clamp_min(MIN_STD)
    else:
        mean, std = _good_statistics(flux, ivar, weighted_mean)
        scores = torch.where(ivar > 0, (flux - mean) / std.clamp_min(MIN_STD), 0.0)
    std = std.clamp_min(MIN_STD)
    slices = scores.unfold(1, slice_size, slice_stride)
    tokens = flux.new_zeros(len(flux), slices.shape[1] + 1, slice_size + 2)
    tokens[:, 0, :2] = torch.cat([(mean - 2) / 2, (std - 2) / 8], dim=1)
    tokens[:, 1:, 2:] = slices
    return tokens


def _good_statistics(flux: Tensor, ivar: Tensor, weighted_mean: bool) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (n, 1) each, over the bins that are not masked."""
    good = ivar > 0
    count = good.sum(dim=1, keepdim=True)
    if weighted_mean:
        # Relative to the largest, so that no sum can overflow.
        weight = ivar.float() / ivar.amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    else:
        weight = good.float()
    total = weight.sum(dim=1, keepdim=True)
    mean = torch.where(good, flux * weight, 0.0).sum(dim=1, keepdim=True) / torch.where(count > 0, total, 1.0)
    squares = torch.where(good, flux - mean, 0.0).square().sum(dim=1, keepdim=True)
    return mean, (squares / (count - 1).clamp_min(1)).sqrt()
