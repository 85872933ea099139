"""Mutual nearest neighbours of two sets of points on the sphere, exact, with ties broken by the rows' numbers.

A pair (a, b) matches when b is the nearest of all b within the radius of a, and a is the nearest of all a within the
radius of b. So each row is in one pair at most, and whether two rows match depends on the sky within two radii alone,
which makes the match the same however the sky is cut. Of rows that are equally near the one with the lowest number
counts as nearest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

# Pairs looked at together: 24 bytes each, and some copies.
_PAIRS_AT_ONCE = 1 << 20
# The tree rounds otherwise than the distances below, which alone decide.
_TREE_SLACK = 1.0 + 1e-9


@dataclass(frozen=True)
class Neighbours:
    """Rows of b that are nearest to rows of a, and the other way round.

    Attributes:
        a, b: (n,) places of the matched rows.
        squared_chord: (n,) their distances.
        candidates_a: (rows of a,) how many b lie within the radius; ``candidates_b`` likewise.
    """

    a: np.ndarray
    b: np.ndarray
    squared_chord: np.ndarray
    candidates_a: np.ndarray
    candidates_b: np.ndarray


class _Nearest:
    """The nearest partner of each row, kept up while pairs come in."""

    def __init__(self, rows: int) -> None:
        self.partner = np.full(rows, -1)
        self.squared_chord = np.full(rows, np.inf)
        self.candidates = np.zeros(rows, np.int64)

    def see(self, rows: np.ndarray, partners: np.ndarray, squared_chord: np.ndarray, numbers: np.ndarray) -> None:
        """Take in pairs.

        Args:
            numbers: of all partners; the lowest wins a tie.
        """
        order = np.lexsort((numbers[partners], squared_chord, rows))
        found, first, count = np.unique(rows[order], return_index=True, return_counts=True)
        best = order[first]
        old, new = self.squared_chord[found], squared_chord[best]
        tie = (new == old) & (numbers[partners[best]] < numbers[self.partner[found]])
        better = (new < old) | tie
        self.partner[found[better]] = partners[best][better]
        self.squared_chord[found[better]] = new[better]
        self.candidates[found] += count


def mutual_nearest(
    vectors_a: np.ndarray, numbers_a: np.ndarray, vectors_b: np.ndarray, numbers_b: np.ndarray, radius_chord: float
) -> Neighbours:
    """Match two sets of points.

    Args:
        vectors_a, vectors_b: (rows, 3) float64 unit vectors.
        numbers_a, numbers_b: (rows,) int64, distinct, which break ties.
        radius_chord: the radius, inclusive, as a straight distance on the unit sphere.
    """
    nearest_a, nearest_b = _Nearest(len(vectors_a)), _Nearest(len(vectors_b))
    if len(vectors_a) and len(vectors_b):
        tree_b = cKDTree(vectors_b)
        reach = radius_chord * _TREE_SLACK
        counts = tree_b.query_ball_point(vectors_a, reach, return_length=True)
        near = np.flatnonzero(counts)
        for part in _parts(near, counts[near]):
            pairs = cKDTree(vectors_a[part]).sparse_distance_matrix(tree_b, reach, output_type="ndarray")
            a, b = part[pairs["i"]], pairs["j"]
            squared = ((vectors_a[a] - vectors_b[b]) ** 2).sum(axis=1)
            inside = squared <= radius_chord**2
            a, b, squared = a[inside], b[inside], squared[inside]
            nearest_a.see(a, b, squared, numbers_b)
            nearest_b.see(b, a, squared, numbers_a)
    a = np.flatnonzero(nearest_a.partner >= 0)
    b = nearest_a.partner[a]
    mutual = nearest_b.partner[b] == a
    a, b = a[mutual], b[mutual]
    return Neighbours(a, b, nearest_a.squared_chord[a], nearest_a.candidates, nearest_b.candidates)


def _parts(rows: np.ndarray, pairs: np.ndarray) -> list[np.ndarray]:
    """Cut rows so that a part has few pairs (or is one row)."""
    if len(rows) == 0:
        return []
    number = np.cumsum(pairs) // _PAIRS_AT_ONCE
    return np.split(rows, np.flatnonzero(np.diff(number)) + 1)
