"""Samples of (a part of) a shard, straight into the arrays of a batch: one read a sample, every member checked."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from isal import isal_zlib

from astroclip_dist.data.ordering.order import Piece
from astroclip_dist.data.reading.shard_bytes import FetchedBytes, Fetcher, FileBytes, RemoteBytes, ShardBytes
from astroclip_dist.data.reading.shard_cache import ShardCache
from astroclip_dist.data.stored.dataset import Shard
from astroclip_dist.data.stored.index import ShardIndex
from astroclip_dist.data.stored.npy import parse_header
from astroclip_dist.errors import DamagedError, DataError, StorageError
from astroclip_dist.store import MissingObjectError, ShortObjectError

# What lies between the members of a sample that are read together (tar headers, a member that nobody asked for).
_SKIPPED = memoryview(bytearray(64 << 10))
_MEND = "Run `astroclip shards verify` on the dataset; then rebuild it or restore the shard."
# How often a sample that came damaged from object storage is fetched again before it counts as damaged there.
_SECOND_LOOKS = 3


class Slot(NamedTuple):
    """Where one array member of a sample goes.

    Attributes:
        into: writable bytes of exactly the array's size.
        dtype, shape: what the manifest says of the member.
    """

    member: str
    into: memoryview
    dtype: np.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LoadedPiece:
    """A piece of a shard, ready to be decoded from."""

    shard: Shard
    index: ShardIndex
    source: ShardBytes

    def read_arrays(self, row: int, slots: Sequence[Slot]) -> None:
        """Read array members of one sample, each into its slot; neighbours in the tar in one read.

        Bytes from object storage that are not what the index says are fetched again, a few times.

        Raises:
            DamagedError: of another shape or dtype, cut short, or with another crc32 than the index says.
            DataError: a member that the sample does not have.
            StorageError: the storage does not answer.
        """
        try:
            self._read(self.source, row, slots)
            return
        except DamagedError:
            if self.shard.store.is_local:
                raise
        self.source.discard()
        for look in range(_SECOND_LOOKS):
            try:
                self._read(RemoteBytes(self.shard.store, self.shard.tar_name), row, slots)
                return
            except (DamagedError, ShortObjectError):
                if look + 1 == _SECOND_LOOKS:
                    raise
            time.sleep(random.uniform(0, 0.2 * 2**look))

    def _read(self, source: ShardBytes, row: int, slots: Sequence[Slot]) -> None:
        headers: list[bytearray] = []
        run: list[memoryview] = []
        begin = end = 0
        for slot in slots:
            offset, header = self._place(row, slot)
            headers.append(header)
            if run and not 0 <= offset - end <= len(_SKIPPED):
                self._read_run(source, row, slots, begin, end, run)
                run = []
            if run:
                run.append(_SKIPPED[: offset - end])
            else:
                begin = offset
            run += (memoryview(header), slot.into)
            end = offset + len(header) + len(slot.into)
        self._read_run(source, row, slots, begin, end, run)
        for slot, header in zip(slots, headers, strict=True):
            dtype, shape, header_crc32 = _describe_header(bytes(header))
            crc32 = isal_zlib.crc32(slot.into, header_crc32)
            expected = self.index.members[slot.member].crc32.item(row)
            if crc32 != expected:
                raise self._damaged(slot.member, row, f"crc32 {crc32:08x}, index says {expected:08x}")
            if dtype != slot.dtype or shape != slot.shape:
                what = f"holds {dtype} {shape}, the manifest says {slot.dtype} {slot.shape}"
                raise self._damaged(slot.member, row, what)

    def _place(self, row: int, slot: Slot) -> tuple[int, bytearray]:
        """Where a member begins in the tar, and room for its .npy header."""
        table = self.index.members[slot.member]
        offset, length = table.offset.item(row), table.length.item(row)
        if offset < 0:
            raise DataError(
                self._where(slot.member, row), "absent", "This objective needs it: choose a dataset that has it."
            )
        header_size = length - len(slot.into)
        if not 10 <= header_size <= 4096:
            raise self._damaged(slot.member, row, f"{length} bytes cannot hold {slot.dtype} {slot.shape}")
        return offset, bytearray(header_size)

    def _read_run(
        self,
        source: ShardBytes,
        row: int,
        slots: Sequence[Slot],
        begin: int,
        end: int,
        buffers: list[memoryview],
    ) -> None:
        try:
            got = source.read_into(begin, buffers)
        except OSError as error:  # a bad sector
            raise self._damaged(slots[0].member, row, f"cannot be read ({error.strerror})") from error
        if got == end - begin:
            return
        for slot in slots:
            table = self.index.members[slot.member]
            offset, length = table.offset.item(row), table.length.item(row)
            if begin + got < offset + length <= end:
                there = max(begin + got - offset, 0)
                raise self._damaged(slot.member, row, f"{there} bytes instead of {length}")

    def read_json(self, row: int) -> bytes:
        """The bytes of ``KEY.json``, checked like an array.

        Raises:
            DamagedError: not what the index says.
        """
        table = self.index.members["json"]
        data = bytearray(table.length.item(row))
        got = self.source.read_into(table.offset.item(row), [memoryview(data)])
        if got != len(data) or isal_zlib.crc32(data) != table.crc32.item(row):
            raise self._damaged("json", row, "not what the index says")
        return bytes(data)

    def _damaged(self, member: str, row: int, what: str) -> DamagedError:
        return DamagedError(self._where(member, row), what, _MEND)

    def _where(self, member: str, row: int) -> str:
        return f"{self.shard.url}: sample {self.index.keys[row]}: {member}"


def load_piece(
    shard: Shard,
    piece: Piece,
    members: Sequence[str],
    fetcher: Fetcher | None = None,
    cache: ShardCache | None = None,
    index: ShardIndex | None = None,
) -> LoadedPiece:
    """Open a piece of a shard for reading.

    A shard on this machine's disk is read straight from its file into the batch. One on object storage is copied into
    the cache, where there is one, and read from there; else the piece's bytes are fetched into memory.

    Args:
        fetcher: for concurrent requests; without it the piece is one ranged read.
        index: the shard's, where it was read before.

    Raises:
        DamagedError: the tar or its index is missing, short or damaged.
        CredentialsError, StorageError
    """
    index = index or shard.read_index()
    return LoadedPiece(shard, index, _open(shard, index, piece, members, fetcher, cache))


def _open(
    shard: Shard,
    index: ShardIndex,
    piece: Piece,
    members: Sequence[str],
    fetcher: Fetcher | None,
    cache: ShardCache | None,
) -> ShardBytes:
    path = shard.store.local_path(shard.tar_name)
    try:
        if path is not None:
            return FileBytes(os.open(path, os.O_RDONLY))
        if cache is not None:
            return cache.open(shard)
        first, last = index.span(piece.start, piece.stop, members)
        if fetcher is None:
            whole = shard.store.read_range(shard.tar_name, first, last)
            return FetchedBytes([whole], first, len(whole))
        return FetchedBytes(fetcher.chunks(shard.store, shard.tar_name, first, last), first)
    except (MissingObjectError, FileNotFoundError) as error:
        raise DamagedError(shard.url, "the tar is missing", _MEND) from error
    except ShortObjectError as error:
        raise DamagedError(shard.url, error.value, _MEND) from error
    except OSError as error:  # no rights, too many open files: not the data's fault
        raise StorageError(shard.url, error.strerror, "Check the disk, its rights and the limits.") from error


@lru_cache(maxsize=64)
def _describe_header(header: bytes) -> tuple[np.dtype, tuple[int, ...], int]:
    """dtype, shape and crc32 of the header of a .npy member; all members of a dataset share a few distinct headers."""
    try:
        dtype, shape, _ = parse_header(header)
    except ValueError:
        dtype, shape = np.dtype("V"), ()
    return dtype, shape, isal_zlib.crc32(header)
