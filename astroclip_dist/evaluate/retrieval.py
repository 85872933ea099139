"""Cross-modal retrieval: given a galaxy's image, is its own spectrum the nearest of all spectra, and the reverse?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

_CHUNK = 512


@dataclass(frozen=True)
class CrossModalRecall:
    """``recall[k]``: share of the queries whose partner is among the k nearest; ``chance[k]`` = k / candidates."""

    candidates: int
    recall: dict[int, float]
    chance: dict[int, float]
    median_rank: float


def cross_modal_recall(queries: np.ndarray, partners: np.ndarray, ks: Sequence[int] = (1, 10)) -> CrossModalRecall:
    """Recall over all candidates; row i of one belongs to row i of the other.

    Candidates that tie with the partner count as nearer, so equal embeddings do not look like success.

    Args:
        queries, partners: (n, D), unit norm.
    """
    ranks = partner_ranks(queries, partners)
    n = len(ranks)
    return CrossModalRecall(
        candidates=n,
        recall={k: float(np.mean(ranks <= k)) for k in ks},
        chance={k: min(1.0, k / n) for k in ks},
        median_rank=float(np.median(ranks)),
    )


def partner_ranks(queries: np.ndarray, partners: np.ndarray) -> np.ndarray:
    """(n,) int64: 1 where the partner is nearer than all other candidates."""
    every = torch.from_numpy(partners).float()
    ranks = []
    for first in range(0, len(queries), _CHUNK):
        cosines = torch.from_numpy(queries[first : first + _CHUNK]).float() @ every.T
        own = cosines.diagonal(offset=first)
        ranks.append((cosines >= own[:, None]).sum(dim=1))
    return torch.cat(ranks).numpy() if ranks else np.empty(0, np.int64)
