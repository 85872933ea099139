"""Which sample keys a build has met: eight bytes a key, so that a survey of 76 million galaxies fits in 0.6 GB."""

from __future__ import annotations

import numpy as np

from astroclip_dist.data.manifest import key_hash

_RECENT = 1 << 20


class SeenKeys:
    """A set of 64-bit key hashes: the recent ones in a Python set, all others in one sorted array."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted = np.empty(0, np.uint64)

    def add(self, key: str) -> bool:
        """Remember a key; False when it was there already."""
        identity = key_hash(key)
        if identity in self._recent or self._in_sorted(identity):
            return False
        self._recent.add(identity)
        if len(self._recent) >= _RECENT:
            self._sorted = np.sort(np.concatenate([self._sorted, np.fromiter(self._recent, np.uint64)]), kind="stable")
            self._recent.clear()
        return True

    def _in_sorted(self, identity: int) -> bool:
        place = int(np.searchsorted(self._sorted, np.uint64(identity)))
        return place < len(self._sorted) and int(self._sorted[place]) == identity
