"""Gaussian blur with a width for each image and band.

A separable blur with reflected edges is B X B, with X the plane and B a symmetric matrix, the same for rows and columns
of a square plane. Two batched matrix products blur planes of any widths together, on CPU and GPU.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from astroclip_dist.data.augment.draws import to_device

TRUNCATE = 4.0


def blur(planes: Tensor, sigma: np.ndarray) -> Tensor:
    """Blur square planes; ``scipy.ndimage.gaussian_filter(plane, sigma, mode="reflect", truncate=4)`` of each.

    Args:
        planes: (n, size, size) float32.
        sigma: (n,), pixels, above 0.

    Returns:
        (n, size, size) float32, new.
    """
    size = planes.shape[-1]
    kernels = to_device(periodic_kernels(sigma, size).astype(np.float32), planes.device)
    # Row i, column j: the weight at distance i - j, and that at i + j + 1, of the mirror image beyond the first edge,
    # which by the period is also that beyond the last. Both are windows into the kernel.
    matrices = torch.cat([kernels[:, size + 1 :], kernels[:, :size]], 1).unfold(1, size, 1).flip(1)
    matrices += kernels[:, 1:].unfold(1, size, 1)
    return torch.bmm(torch.bmm(matrices, planes), matrices)


def periodic_kernels(sigma: np.ndarray, size: int) -> np.ndarray:
    """Weights of pixels at distance 0 ... 2 size - 1 in a line that is mirrored at both ends, and so has period 2 size.

    Args:
        sigma: (n,), pixels, above 0.

    Returns:
        (n, 2 size) float64; each row sums to 1.
    """
    radius = np.floor(TRUNCATE * sigma + 0.5)[:, None]
    reach = int(radius.max(initial=0))
    distance = np.arange(-reach, reach + 1)
    weights = np.where(np.abs(distance) <= radius, np.exp(-0.5 * (distance / sigma[:, None]) ** 2), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    folded = np.zeros((2 * size, len(sigma)))
    np.add.at(folded, distance % (2 * size), weights.T)
    return folded.T
