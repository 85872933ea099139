"""Where the bytes of a shard are read from: a local file, or a span fetched into memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from astroclip_dist.freed_memory import keep_freed_memory
from astroclip_dist.store import Store

# Large enough that a request's own cost is small, small enough that a cut connection repeats little.
CHUNK_BYTES = 8 << 20


class ShardBytes(Protocol):
    """The bytes of (a part of) a shard."""

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill buffers, one after the other, from an offset in the tar on; fewer bytes come only at the end."""

    def discard(self) -> None:
        """Told that the bytes are damaged: a copy of them is not to be used again."""


class FileBytes:
    """A file: the kernel copies from its page cache into the batch.

    Args:
        descriptor: open for reading; closed with the last sample that refers to it.
        cached_copy: its path, when it is a copy of an object that can be fetched again.
    """

    def __init__(self, descriptor: int, cached_copy: Path | None = None) -> None:
        self._descriptor, self._cached_copy = descriptor, cached_copy

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> int:
        return os.preadv(self._descriptor, buffers, offset)

    def discard(self) -> None:
        if self._cached_copy is not None:
            self._cached_copy.unlink(missing_ok=True)

    def __del__(self) -> None:
        # Rows of a batch that is still being filled may outlive their window: the last one closes the file.
        os.close(self._descriptor)


class FetchedBytes:
    """A span [begin, ...) of a remote object, in chunks of one size (the last may be shorter)."""

    def __init__(self, chunks: Sequence[memoryview], begin: int, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._chunks = [np.frombuffer(chunk, np.uint8) for chunk in chunks]
        self._begin, self._chunk_bytes = begin, max(chunk_bytes, 1)

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> int:
        number, at = divmod(offset - self._begin, self._chunk_bytes)
        total = 0
        for buffer in buffers:
            into = np.frombuffer(buffer, np.uint8)
            while len(into):
                part = self._chunks[number][at : at + len(into)] if number < len(self._chunks) else into[:0]
                if not len(part):
                    return total
                np.copyto(into[: len(part)], part)  # numpy lets other threads run meanwhile; memoryview would not
                into, total = into[len(part) :], total + len(part)
                number, at = divmod(number * self._chunk_bytes + at + len(part), self._chunk_bytes)
        return total

    def discard(self) -> None:
        """Nothing is kept."""


class RemoteBytes:
    """A remote object, read anew each time: a second look at a sample that came damaged."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> int:
        data = self._store.read_range(self._name, offset, offset + sum(map(len, buffers)))
        return FetchedBytes([data], offset, len(data)).read_into(offset, buffers)

    def discard(self) -> None:
        """Nothing is kept."""


class Fetcher:
    """Fetches spans of remote objects by concurrent ranged reads.

    Args:
        requests: how many are in flight at once, over all spans.
    """

    def __init__(self, requests: int) -> None:
        keep_freed_memory()
        self._pool = ThreadPoolExecutor(requests, "request")

    def chunks(self, store: Store, name: str, first: int, last: int) -> list[memoryview]:
        """Bytes [first, last) in pieces of ``CHUNK_BYTES``.

        Raises:
            StorageError: of the first chunk that failed.
        """
        tasks = [
            self._pool.submit(store.read_range, name, at, min(at + CHUNK_BYTES, last))
            for at in range(first, last, CHUNK_BYTES)
        ]
        try:
            return [task.result() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()

    def download(self, store: Store, name: str, size: int, descriptor: int) -> None:
        """Write a whole object to an open file, chunk by chunk, never holding more than the requests in flight.

        Raises:
            StorageError: the object cannot be read.
            OSError: the file cannot be written.
        """

        def copy(at: int) -> None:
            data = store.read_range(name, at, min(at + CHUNK_BYTES, size))
            while data:
                written = os.pwrite(descriptor, data, at)
                data, at = data[written:], at + written

        tasks = [self._pool.submit(copy, at) for at in range(0, size, CHUNK_BYTES)]
        try:
            for task in tasks:
                task.result()
        finally:
            for task in tasks:
                task.cancel()

    def close(self) -> None:
        """Start no further requests; those in flight end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)
