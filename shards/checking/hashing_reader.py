"""Read a stored object from begin to end, and know its sha256 then."""

from __future__ import annotations

import hashlib
import io

from astroclip_dist.store import Store

# tarfile copies what remains of its buffer at every read: a large one costs more than it saves.
TAR_BUFFER_BYTES = 64 << 10
_PIECE_BYTES = 8 << 20


class HashingReader(io.RawIOBase):
    """A stored object as a stream, fetched in large pieces and hashed on the way."""

    def __init__(self, store: Store, name: str, size: int) -> None:
        self._store, self._name, self._size = store, name, size
        self._piece = memoryview(b"")
        self.fetched = 0
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Some of the next bytes, at most ``size``; none at the end."""
        if not self._piece:
            self._fetch()
        count = len(self._piece) if size < 0 else size
        data, self._piece = bytes(self._piece[:count]), self._piece[count:]
        return data

    def drain(self) -> None:
        """Fetch and hash what nobody has read."""
        while self.fetched < self._size:
            self._fetch()

    def _fetch(self) -> None:
        stop = min(self._size, self.fetched + _PIECE_BYTES)
        if stop > self.fetched:
            self._piece = self._store.read_range(self._name, self.fetched, stop)
            self.sha256.update(self._piece)
            self.fetched = stop
