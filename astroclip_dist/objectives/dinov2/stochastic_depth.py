"""Stochastic depth that saves the work: the crops each residual branch is computed for (Oquab et al. 2023, section 5).

DINOv2 draws them from a rank's batch, so that they change with the number of ranks and micro-batches. Here they are
drawn from cohorts of consecutive samples, by ranking numbers that belong to the sample.
"""

from __future__ import annotations

import math

import numpy as np

from astroclip_dist.data.draws import uniform

_BRANCHES = 2


def kept_crops(ids: np.ndarray, key: int, views: int, depth: int, cohort: int, drop: float) -> np.ndarray:
    """Draw them for one group of equally large crops.

    Args:
        ids: (n,) uint64, identities of samples (``Batch.draw_ids``).
        key: ``data.draws.stream_key`` of the seed and of the group.
        views: crops of each sample in the group.
        depth: blocks of the encoder.
        cohort: how many consecutive samples make one, a divisor of n.
        drop: share of the crops that skip a branch.

    Returns:
        (depth, 2, k) int64, ascending: for attention and MLP of each block, crops counted view after view, of every
        cohort as many, rounded down but at least one.
    """
    n = len(ids)
    # Rounded first: (1 - 0.9) * 10 is a little less than 1.
    count = max(math.floor(round((1 - drop) * cohort * views, 6)), 1)
    draws = uniform(key, ids, views * depth * _BRANCHES).reshape(-1, cohort, views, depth, _BRANCHES)
    draws = draws.transpose(3, 4, 0, 2, 1).reshape(depth, _BRANCHES, n // cohort, views * cohort)
    view, sample = np.divmod(np.argpartition(draws, count - 1, axis=3)[..., :count], cohort)
    crops = view * n + np.arange(0, n, cohort)[:, None] + sample
    return np.sort(crops.reshape(depth, _BRANCHES, -1), axis=2)
