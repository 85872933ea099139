"""Bytes of shards to arrays of a batch: one ranged read a piece, every member checked, one copy.

A shard on this machine's disk is read straight from its file into the batch; one on object storage is fetched as a
range, held in memory, and copied from there.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from isal import isal_zlib

from astroclip_dist.data.dataset import Shard
from astroclip_dist.data.index import MemberTable, ShardIndex
from astroclip_dist.data.order import Piece
from astroclip_dist.errors import DataError

# What lies between the members of a sample that are read together (tar headers, a member that nobody asked for).
_SKIPPED = memoryview(bytearray(64 << 10))
_MEND = "Run `astroclip shards verify` on the dataset; then rebuild it or restore the shard."


class _Bytes(Protocol):
    def read_into(self, offset: int, buffers: list[memoryview]) -> int: ...


class _LocalBytes:
    """A file: the kernel copies from its page cache into the batch."""

    def __init__(self, path: os.PathLike[str]) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def read_into(self, offset: int, buffers: list[memoryview]) -> int:
        return os.preadv(self._descriptor, buffers, offset)

    def __del__(self) -> None:
        # Rows of a batch that is still being filled may outlive their window: the last one closes the file.
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


class _FetchedBytes:
    """A range of a remote object, held in memory."""

    def __init__(self, data: memoryview, begin: int) -> None:
        self._data, self._begin = data, begin

    def read_into(self, offset: int, buffers: list[memoryview]) -> int:
        at = offset - self._begin
        done = 0
        for buffer in buffers:
            part = self._data[at + done : at + done + len(buffer)]
            buffer[: len(part)] = part
            done += len(part)
        return done


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
    source: _Bytes

    def read_arrays(self, row: int, slots: Sequence[Slot]) -> None:
        """Read array members of one sample, each into its slot; neighbours in the tar in one read.

        Raises:
            DataError: absent, of another shape or dtype, cut short, or with another crc32 than the index says.
        """
        headers: list[bytearray] = []
        run: list[memoryview] = []
        begin = end = 0
        for slot in slots:
            offset, header = self._place(row, slot)
            headers.append(header)
            if run and not 0 <= offset - end <= len(_SKIPPED):
                self._read_run(row, slots, begin, end, run)
                run = []
            if run:
                run.append(_SKIPPED[: offset - end])
            else:
                begin = offset
            run += (memoryview(header), slot.into)
            end = offset + len(header) + len(slot.into)
        self._read_run(row, slots, begin, end, run)
        for slot, header in zip(slots, headers, strict=True):
            crc32 = isal_zlib.crc32(slot.into, isal_zlib.crc32(header))
            expected = int(self.index.members[slot.member].crc32[row])
            if crc32 != expected:
                raise self._error(slot.member, row, f"crc32 {crc32:08x}, index says {expected:08x}", _MEND)
            found, wanted = _parse_npy_header(bytes(header)), (slot.dtype, slot.shape)
            if found != wanted:
                raise self._error(slot.member, row, f"holds {found}, the manifest says {wanted}", _MEND)

    def _place(self, row: int, slot: Slot) -> tuple[int, bytearray]:
        """Where a member begins in the tar, and room for its .npy header."""
        table = self.index.members[slot.member]
        offset, length = int(table.offset[row]), int(table.length[row])
        if offset < 0:
            raise self._error(slot.member, row, "absent", "This objective needs it: choose a dataset that has it.")
        header_size = length - len(slot.into)
        if not 10 <= header_size <= 4096:
            raise self._error(slot.member, row, f"{length} bytes cannot hold {slot.dtype} {slot.shape}", _MEND)
        return offset, bytearray(header_size)

    def _read_run(self, row: int, slots: Sequence[Slot], begin: int, end: int, buffers: list[memoryview]) -> None:
        got = self.source.read_into(begin, buffers)
        if got == end - begin:
            return
        for slot in slots:
            table = self.index.members[slot.member]
            offset, length = int(table.offset[row]), int(table.length[row])
            if begin + got < offset + length <= end:
                there = max(begin + got - offset, 0)
                raise self._error(slot.member, row, f"{there} bytes instead of {length}", _MEND)

    def read_json(self, row: int) -> bytes:
        """The bytes of ``KEY.json``, checked like an array."""
        table: MemberTable = self.index.members["json"]
        data = bytearray(int(table.length[row]))
        got = self.source.read_into(int(table.offset[row]), [memoryview(data)])
        if got != len(data) or isal_zlib.crc32(data) != int(table.crc32[row]):
            raise self._error("json", row, "damaged", _MEND)
        return bytes(data)

    def _error(self, member: str, row: int, value: str, mend: str) -> DataError:
        return DataError(f"{self.shard.url}: sample {self.index.keys[row]}: {member}", value, mend)


def load_piece(shard: Shard, piece: Piece, members: Sequence[str]) -> LoadedPiece:
    """Open a piece of a shard for reading; from object storage this fetches its bytes in one ranged read."""
    index = shard.read_index()
    path = shard.store.local_path(shard.tar_name)
    if path is not None:
        try:
            return LoadedPiece(shard, index, _LocalBytes(path))
        except OSError as error:
            raise DataError(shard.url, error.strerror, _MEND) from error
    first, last = index.span(piece.start, piece.stop, members)
    return LoadedPiece(shard, index, _FetchedBytes(shard.store.read_range(shard.tar_name, first, last), first))


@lru_cache(maxsize=64)
def _parse_npy_header(header: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    """dtype and shape from the header of a .npy member; all members of a dataset share a few distinct headers."""
    stream = io.BytesIO(header)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(stream)
    except ValueError:
        return np.dtype("V"), ()
    return (np.dtype("V"), ()) if fortran_order else (dtype, shape)
