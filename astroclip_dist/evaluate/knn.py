"""k-nearest-neighbour regression, weights 1 / distance: what a representation knows without any training on top.

As AstroCLIP's zero-shot evaluation (Parker et al. 2024, section 5.2), with k = 16 neighbours.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from astroclip_dist.embed.search import top_k

K = 16
_CHUNK = 1024


def knn_regression(known: np.ndarray, values: np.ndarray, asked: np.ndarray, k: int = K) -> np.ndarray:
    """Mean of the values of the k nearest known galaxies by Euclidean distance, weighted with 1 / distance.

    For unit vectors the distance is sqrt(2 - 2 cosine). Known galaxies at distance 0, if any, decide alone.

    Args:
        known: (n, D), asked: (m, D), any float dtype; values: (n,).
        k: taken as n where n is smaller.

    Returns:
        (m,) float64.
    """
    gallery, queries = torch.from_numpy(known).double(), torch.from_numpy(asked).double()
    targets = torch.from_numpy(np.asarray(values, np.float64))
    rows = _nearest_rows(queries, gallery, min(k, len(gallery)))
    return torch.cat(
        [
            _weighted_mean(
                queries[first : first + _CHUNK],
                gallery[rows[first : first + _CHUNK]],
                targets[rows[first : first + _CHUNK]],
            )
            for first in range(0, len(queries), _CHUNK)
        ]
        or [torch.empty(0, dtype=torch.float64)]
    ).numpy()


def standardise(known: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with each feature shifted and scaled to mean 0 and spread 1 over the known galaxies."""
    mean, std = known.mean(axis=0), known.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    return (known - mean) / std, (asked - mean) / std


def _nearest_rows(queries: Tensor, gallery: Tensor, k: int) -> Tensor:
    # |q - g|^2 = |q|^2 - 2 (q.g - |g|^2 / 2): nearest is the largest q.g - |g|^2 / 2, one product with a 1 appended.
    ones = queries.new_ones(len(queries), 1)
    half_squares = gallery.square().sum(dim=1, keepdim=True) / 2
    return top_k(torch.cat([queries, ones], dim=1), torch.cat([gallery, -half_squares], dim=1), k)[1]


def _weighted_mean(queries: Tensor, neighbours: Tensor, values: Tensor) -> Tensor:
    """(m, D), (m, k, D), (m, k) -> (m,). Distances anew from differences: products lose them to rounding."""
    distance = (neighbours - queries[:, None]).norm(dim=2)
    exact = distance == 0
    weight = torch.where(exact.any(dim=1, keepdim=True), exact.double(), 1 / distance)
    return (weight * values).sum(dim=1) / weight.sum(dim=1)
