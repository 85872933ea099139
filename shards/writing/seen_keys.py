"""Which sample keys a build has met: eight bytes a key, so that a survey of 76 million galaxies fits in 0.6 GB."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from astroclip_dist.data.stored.manifest import key_hash

# Keys of the longest sorted run (32 MB): merging never needs more beside what is kept.
_LONGEST_RUN = 1 << 22


class SeenKeys:
    """A set of 64-bit key hashes, as sorted runs; two runs of a length become one, up to a longest."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Remember some hashes.

        Args:
            hashes: (n,) uint64.

        Returns:
            (n,) bool: which were new; of equal ones the first.
        """
        distinct, first = np.unique(hashes, return_index=True)
        new = np.zeros(len(hashes), bool)
        new[first[~self._known(distinct)]] = True
        self._append(np.sort(hashes[new]))
        return new

    def _known(self, hashes: np.ndarray) -> np.ndarray:
        known = np.zeros(len(hashes), bool)
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            known |= run[place] == hashes
        return known

    def _append(self, run: np.ndarray) -> None:
        if not len(run):
            return
        while self._runs and len(self._runs[-1]) <= len(run) and len(self._runs[-1]) + len(run) <= _LONGEST_RUN:
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        self._runs.append(run)


def hash_keys(keys: Sequence[str]) -> np.ndarray:
    """(n,) uint64: the hash of each key."""
    return np.fromiter(map(key_hash, keys), np.uint64, len(keys))
