"""Check one shard byte by byte: its tar against its index, and both against the manifest."""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from isal import isal_zlib

from astroclip_dist.data.stored.index import ARRAY_MEMBERS, MEMBERS, ShardIndex, decode_index
from astroclip_dist.data.stored.manifest import ShardEntry, Split, split_of
from astroclip_dist.errors import DataError
from astroclip_dist.store import MissingObjectError, Store
from shards.checking.hashing_reader import TAR_BUFFER_BYTES, HashingReader
from shards.layout import Layout
from shards.stored.reading import decode_array
from shards.writing.open_shard import member_file
from shards.writing.seen_keys import hash_keys


@dataclass(frozen=True)
class Fault:
    """What is wrong, and where: a shard, in it perhaps a sample's key, of it perhaps one member.

    Attributes:
        damaged: the file is missing, or has other bytes than those that the manifest names.
    """

    shard: str
    what: str
    key: str = ""
    member: str = ""
    damaged: bool = False

    def __str__(self) -> str:
        place = ".".join(part for part in (self.key, self.member) if part)
        return f"{self.shard}: {place}: {self.what}" if place else f"{self.shard}: {self.what}"


@dataclass
class CheckedShard:
    """What was read of a shard, the hashes of its keys, and every fault found."""

    entry: ShardEntry
    bytes: int = 0
    hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True)
class CheckShard:
    """Checks the shards of a dataset, each in any thread or process.

    Args:
        layout, split_fractions: of the manifest.
    """

    store: Store
    layout: Layout
    split_fractions: dict[Split, float]

    def __call__(self, shard: tuple[ShardEntry, int | None]) -> CheckedShard:
        """Check a shard.

        Args:
            shard: its entry in the manifest, and the size of its tar, None where there is none.

        Raises:
            StorageError: the storage does not answer or refuses.
        """
        entry, size = shard
        tar_name, index_name = f"{entry.name}.tar", f"{entry.name}.idx"
        outcome = CheckedShard(entry)
        index = _check_index(self.store, entry, outcome.faults)
        if index is not None:
            if len(index) != entry.samples:
                outcome.faults.append(Fault(index_name, f"{len(index)} samples, the manifest says {entry.samples}"))
            outcome.hashes = hash_keys(index.keys)
            for key in index.keys:
                if split_of(key, self.split_fractions) != entry.split:
                    outcome.faults.append(Fault(tar_name, f"does not belong to the split {entry.split}", key))
        if size is None:
            outcome.faults.append(Fault(tar_name, "missing", damaged=True))
            return outcome
        if size != entry.bytes:
            outcome.faults.append(Fault(tar_name, f"{size} bytes, the manifest says {entry.bytes}", damaged=True))
        reader = HashingReader(self.store, tar_name, size)
        if index is not None:
            outcome.faults += _check_members(reader, self.layout, index, tar_name)
        reader.drain()
        outcome.bytes = reader.fetched
        if reader.sha256.hexdigest() != entry.sha256:
            outcome.faults.append(Fault(tar_name, "its sha256 is not the manifest's", damaged=True))
        return outcome


def _check_index(store: Store, entry: ShardEntry, faults: list[Fault]) -> ShardIndex | None:
    name = f"{entry.name}.idx"
    try:
        data = store.read(name)
        if hashlib.sha256(data).hexdigest() != entry.index_sha256:
            faults.append(Fault(name, "its sha256 is not the manifest's", damaged=True))
        return decode_index(data, store.locate(name))
    except MissingObjectError:
        faults.append(Fault(name, "missing", damaged=True))
    except DataError as error:
        faults.append(Fault(name, str(error.value)))
    return None


def _check_members(reader: HashingReader, layout: Layout, index: ShardIndex, tar_name: str) -> list[Fault]:
    """Walk the tar as any tar reader does, and compare each member with the index, in order."""
    faults: list[Fault] = []
    expected = (
        (row, key, member)
        for row, key in enumerate(index.keys)
        for member in MEMBERS
        if index.members[member].offset[row] >= 0
    )
    try:
        with tarfile.open(fileobj=reader, mode="r|", bufsize=TAR_BUFFER_BYTES) as tar:
            for header in tar:
                row, key, member = next(expected, (-1, "", ""))
                if header.name != member_file(key, member):
                    other = f"member {header.name} where the index has {member_file(key, member)}"
                    return [*faults, Fault(tar_name, other, key, member)]
                try:
                    stream = tar.extractfile(header)
                    content = stream.read() if stream is not None else b""
                except (tarfile.TarError, OSError) as error:
                    faults.append(Fault(tar_name, f"the tar ends within it ({error})", key, member))
                    return faults
                what = _member_fault(content, header.offset_data, layout, index, row, member)
                if what:
                    faults.append(Fault(tar_name, what, key, member))
    except tarfile.TarError as error:
        faults.append(Fault(tar_name, f"not readable as a tar ({error})"))
    missing = next(expected, None)
    if missing is not None:
        faults.append(Fault(tar_name, "missing, and all that follows it: the tar ends before", missing[1], missing[2]))
    return faults


def _member_fault(content: bytes, offset: int, layout: Layout, index: ShardIndex, row: int, member: str) -> str | None:
    table = index.members[member]
    if (offset, len(content)) != (int(table.offset[row]), int(table.length[row])):
        return f"{len(content)} bytes at offset {offset}, the index says {table.length[row]} at {table.offset[row]}"
    if isal_zlib.crc32(content) != int(table.crc32[row]):
        return "its crc32 is not the index's"
    if member in ARRAY_MEMBERS:
        return _array_fault(content, layout, member)
    try:
        parsed = json.loads(content, parse_constant=_refuse_constant)
    except ValueError as error:
        return f"not JSON ({error})"
    return None if isinstance(parsed, dict) else "not a JSON object"


def _array_fault(content: bytes, layout: Layout, member: str) -> str | None:
    grid = layout.image if member == "image" else layout.spectrum
    if grid is None or (member == "ivar" and not layout.ivar):
        return f"the manifest has no {member}"
    try:
        array = decode_array(content, member)
    except DataError as error:
        return str(error.value)
    if array.shape != grid.shape or array.dtype != np.dtype(grid.dtype):
        return f"{array.dtype} {array.shape}, the manifest says {grid.dtype} {grid.shape}"
    return None if np.isfinite(array).all() else "values that are not finite"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
