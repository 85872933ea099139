"""``NAME.idx`` beside ``NAME.tar``: where each member of each sample lies, and its crc32, as one Arrow IPC file.

One row a sample, in the order of the tar; columns ``key`` and, for each member, ``MEMBER_offset`` (of the first byte of
the member's content), ``MEMBER_length``, ``MEMBER_crc32``; null where a sample lacks the member.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from astroclip_dist.errors import DamagedError

INDEX_VERSION = b"1"
ARRAY_MEMBERS = ("image", "spectrum", "ivar")
MEMBERS = (*ARRAY_MEMBERS, "json")
ABSENT = -1

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        *(
            pa.field(f"{member}_{column}", kind)
            for member in MEMBERS
            for column, kind in (("offset", pa.int64()), ("length", pa.int64()), ("crc32", pa.uint32()))
        ),
    ],
    metadata={"astroclip_index_version": INDEX_VERSION},
)


@dataclass(frozen=True)
class MemberTable:
    """Offsets, lengths (bytes) and crc32 of one member over the samples of a shard; offset -1 where absent."""

    offset: np.ndarray
    length: np.ndarray
    crc32: np.ndarray


@dataclass(frozen=True)
class ShardIndex:
    """The byte index of one shard."""

    keys: Sequence[str]
    members: dict[str, MemberTable]

    def __len__(self) -> int:
        return len(self.keys)

    def lies_within(self, tar_bytes: int) -> bool:
        """Whether every member that is there lies between the beginning and the end of the tar."""
        for table in self.members.values():
            there = table.offset != ABSENT
            offset, length = table.offset[there], table.length[there]
            if ((offset < 0) | (length < 0) | (offset > tar_bytes) | (length > tar_bytes - offset)).any():
                return False
        return True

    def span(self, start: int, stop: int, members: Sequence[str]) -> tuple[int, int]:
        """The byte range [first, last) of the tar that covers the members of samples [start, stop)."""
        first, last = [], []
        for member in members:
            table = self.members[member]
            there = table.offset[start:stop] >= 0
            if there.any():
                first.append(int(table.offset[start:stop][there].min()))
                last.append(int((table.offset[start:stop] + table.length[start:stop])[there].max()))
        return (min(first), max(last)) if first else (0, 0)


def encode_index(rows: Sequence[dict[str, str | int | None]]) -> bytes:
    """Rows with the columns of ``SCHEMA`` as the bytes of an ``.idx`` file."""
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(table)
    return sink.getvalue()


def decode_index(data: bytes | memoryview, where: str) -> ShardIndex:
    """Parse an ``.idx`` file.

    Raises:
        DamagedError: not such a file, or one of another version.
    """
    mend = "Run `astroclip shards verify` on the dataset and build it again."
    try:
        reader = pa.ipc.open_file(pa.py_buffer(data))
        table = reader.read_all()
        table.validate(full=True)  # what a hostile file says of its own buffers is not to be believed
        keys = table.column("key").to_pylist() if "key" in table.schema.names else []
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DamagedError(where, "not a shard index", mend) from error
    version = (table.schema.metadata or {}).get(b"astroclip_index_version")
    if version != INDEX_VERSION or not table.schema.equals(SCHEMA):
        raise DamagedError(where, f"shard index of version {version!r}", mend)

    members = {
        member: MemberTable(
            _numbers(table.column(f"{member}_offset"), np.int64, ABSENT),
            _numbers(table.column(f"{member}_length"), np.int64, 0),
            _numbers(table.column(f"{member}_crc32"), np.uint32, 0),
        )
        for member in MEMBERS
    }
    return ShardIndex(keys, members)


def _numbers(column: pa.ChunkedArray, dtype: type[np.generic], absent: int) -> np.ndarray:
    """The values of a column, with another number for null.

    Not by ``fill_null``: pyarrow would import pandas for it, half a second of CPU before the first batch.
    """
    array = column.combine_chunks()
    if not len(array):
        return np.empty(0, dtype)
    there, values = array.buffers()
    numbers = np.frombuffer(values, dtype, array.offset + len(array))[array.offset :]
    if not array.null_count:
        return numbers
    valid = np.unpackbits(np.frombuffer(there, np.uint8), bitorder="little")[array.offset :][: len(array)]
    return np.where(valid, numbers, dtype(absent))
