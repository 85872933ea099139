"""Check a dataset byte by byte against its manifest and indexes, and name every fault."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TextIO

import numpy as np
from isal import isal_zlib

from astroclip_dist.data.index import ARRAY_MEMBERS, MEMBERS, ShardIndex, decode_index
from astroclip_dist.data.manifest import Manifest, ShardEntry, key_hash, read_manifest, split_of
from astroclip_dist.errors import DataError
from astroclip_dist.progress import with_progress
from astroclip_dist.store import MissingObjectError, Store
from shards.dataset_folder import SHARD_NAME
from shards.hashing_reader import TAR_BUFFER_BYTES, HashingReader
from shards.open_shard import member_file
from shards.reading import decode_array

_THREADS = 4


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
class Report:
    """The outcome of :func:`verify`: what was read, and every fault found."""

    url: str
    shards: int = 0
    samples: int = 0
    bytes: int = 0
    faults: list[Fault] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not self.faults

    @property
    def damaged(self) -> set[str]:
        """The tars and indexes that are missing or have other bytes than those that the manifest names."""
        return {fault.shard for fault in self.faults if fault.damaged}


@dataclass
class _ShardOutcome:
    bytes: int
    hashes: np.ndarray
    faults: list[Fault]


def verify(url: str, progress: TextIO | None = None) -> Report:
    """Read a whole dataset and compare: sizes, hashes, checksums, tar headers, keys, splits, counts, array layouts.

    Args:
        progress: where to report (standard error when None).

    Returns:
        A report without faults when the dataset is what its manifest says.

    Raises:
        DataError: no dataset there, or a manifest of another schema.
        StorageError: the storage does not answer or refuses.
    """
    store = Store(url)
    manifest = read_manifest(store)
    sizes = {found.name: found.size for found in store.list()}
    report = Report(store.url, faults=_check_names(manifest, sizes))
    hashes: list[np.ndarray] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        outcomes = pool.map(lambda entry: _check_shard(store, manifest, entry, sizes), manifest.shards)
        with closing(with_progress(outcomes, len(manifest.shards), "shards", progress)) as checked:
            for outcome in checked:
                report.shards += 1
                report.samples += len(outcome.hashes)
                report.bytes += outcome.bytes
                report.faults += outcome.faults
                hashes.append(outcome.hashes)
    report.faults += _duplicate_keys(store, manifest, hashes)
    return report


def _check_names(manifest: Manifest, sizes: dict[str, int]) -> list[Fault]:
    """Counts that do not add up, and shards that the manifest does not know."""
    faults = []
    known = {f"{entry.name}.{kind}" for entry in manifest.shards for kind in ("tar", "idx")}
    if len(known) != 2 * len(manifest.shards):
        faults.append(Fault("manifest.json", "names a shard twice"))
    for name in sizes:
        if SHARD_NAME.fullmatch(name) and name not in known:
            faults.append(Fault(name, "not in the manifest"))
    for split, count in manifest.counts.items():
        total = sum(entry.samples for entry in manifest.shards if entry.split == split)
        if total != count:
            faults.append(Fault("manifest.json", f"counts {count} {split} samples, its shards {total}"))
    return faults


def _check_shard(store: Store, manifest: Manifest, entry: ShardEntry, sizes: dict[str, int]) -> _ShardOutcome:
    tar_name, index_name = f"{entry.name}.tar", f"{entry.name}.idx"
    outcome = _ShardOutcome(0, np.empty(0, np.uint64), [])
    index = _check_index(store, entry, outcome.faults)
    if index is not None:
        if len(index) != entry.samples:
            outcome.faults.append(Fault(index_name, f"{len(index)} samples, the manifest says {entry.samples}"))
        outcome.hashes = np.fromiter(map(key_hash, index.keys), np.uint64, len(index))
        for key in index.keys:
            if split_of(key, manifest.split_fractions) != entry.split:
                outcome.faults.append(Fault(tar_name, f"does not belong to the split {entry.split}", key))
    if tar_name not in sizes:
        outcome.faults.append(Fault(tar_name, "missing", damaged=True))
        return outcome
    if sizes[tar_name] != entry.bytes:
        outcome.faults.append(
            Fault(tar_name, f"{sizes[tar_name]} bytes, the manifest says {entry.bytes}", damaged=True)
        )
    reader = HashingReader(store, tar_name, sizes[tar_name])
    if index is not None:
        outcome.faults += _check_members(reader, manifest, index, tar_name)
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


def _check_members(reader: HashingReader, manifest: Manifest, index: ShardIndex, tar_name: str) -> list[Fault]:
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
                what = _member_fault(content, header.offset_data, manifest, index, row, member)
                if what:
                    faults.append(Fault(tar_name, what, key, member))
    except tarfile.TarError as error:
        faults.append(Fault(tar_name, f"not readable as a tar ({error})"))
    missing = next(expected, None)
    if missing is not None:
        faults.append(Fault(tar_name, "missing, and all that follows it: the tar ends before", missing[1], missing[2]))
    return faults


def _member_fault(
    content: bytes, offset: int, manifest: Manifest, index: ShardIndex, row: int, member: str
) -> str | None:
    table = index.members[member]
    if (offset, len(content)) != (int(table.offset[row]), int(table.length[row])):
        return f"{len(content)} bytes at offset {offset}, the index says {table.length[row]} at {table.offset[row]}"
    if isal_zlib.crc32(content) != int(table.crc32[row]):
        return "its crc32 is not the index's"
    if member in ARRAY_MEMBERS:
        return _array_fault(content, manifest, member)
    try:
        parsed = json.loads(content, parse_constant=_refuse_constant)
    except ValueError as error:
        return f"not JSON ({error})"
    return None if isinstance(parsed, dict) else "not a JSON object"


def _array_fault(content: bytes, manifest: Manifest, member: str) -> str | None:
    layout = manifest.image if member == "image" else manifest.spectrum
    if layout is None or (member == "ivar" and not manifest.ivar):
        return f"the manifest has no {member}"
    try:
        array = decode_array(content, member)
    except DataError as error:
        return str(error.value)
    if array.shape != layout.shape or array.dtype != np.dtype(layout.dtype):
        return f"{array.dtype} {array.shape}, the manifest says {layout.dtype} {layout.shape}"
    return None if np.isfinite(array).all() else "values that are not finite"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _duplicate_keys(store: Store, manifest: Manifest, hashes: Sequence[np.ndarray]) -> list[Fault]:
    """Keys that are there twice, named in each shard that has them."""
    together = np.sort(np.concatenate([np.empty(0, np.uint64), *hashes]))
    twice = np.unique(together[1:][together[1:] == together[:-1]])
    faults = []
    for entry, of_shard in zip(manifest.shards, hashes, strict=True):
        places = np.flatnonzero(np.isin(of_shard, twice)) if len(twice) else ()
        if len(places):
            keys = decode_index(store.read(f"{entry.name}.idx"), store.locate(f"{entry.name}.idx")).keys
            faults += [
                Fault(f"{entry.name}.tar", "this key is in the dataset twice", keys[int(place)]) for place in places
            ]
    return faults
