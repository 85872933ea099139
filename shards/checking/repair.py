"""Mend a dataset: bring back the tars and indexes that its manifest names, and nothing that differs from them.

Whatever is put has the sha256 that the manifest says, so that a repair cannot make a dataset worse. An index is made
anew from its tar where that is sound; everything else comes from a copy or is built again (see ``menders.py``).
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

from isal import isal_zlib

from astroclip_dist.data.stored.index import MEMBERS, encode_index
from astroclip_dist.data.stored.manifest import Manifest, ShardEntry, read_manifest
from astroclip_dist.store import Store
from shards.building.executors import Workers
from shards.checking.hashing_reader import TAR_BUFFER_BYTES, HashingReader
from shards.checking.verify import verify
from shards.writing.open_shard import member_file

# Takes the dataset, its manifest and the files to mend; gives for each the reason why it could not be, or none ("").
Mender = Callable[[Store, Manifest, list[str]], Iterator[tuple[str, str]]]


@dataclass
class RepairReport:
    """The outcome of a repair.

    Attributes:
        mended: files that are again what the manifest says.
        broken: files that are not, and why they could not be mended.
        faults: others that were found, in shards whose files are what the manifest says: no repair mends those.
    """

    url: str
    mended: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not (self.broken or self.faults)


def repair(url: str, mend: Mender, progress: TextIO | None = None, workers: Workers | None = None) -> RepairReport:
    """Find what is damaged, remake indexes from their tars, and let ``mend`` bring back the rest.

    Args:
        progress: where to report (standard error when None).
        workers: who looks for damage, as of :func:`shards.checking.verify.verify`.

    Raises:
        DataError: no dataset there.
        StorageError: the storage does not answer or refuses.
    """
    found = verify(url, progress, workers)
    store = Store(url)
    manifest = read_manifest(store)
    damaged = found.damaged
    shards = {name.rsplit(".", 1)[0] for name in damaged}
    report = RepairReport(
        store.url, faults=[str(fault) for fault in found.faults if fault.shard.rsplit(".", 1)[0] not in shards]
    )
    for entry in manifest.shards:
        if damaged & {f"{entry.name}.idx", f"{entry.name}.tar"} == {f"{entry.name}.idx"} and _remake_index(
            store, entry
        ):
            report.mended.append(f"{entry.name}.idx")
    left = sorted(damaged.difference(report.mended))
    for name, problem in mend(store, manifest, left) if left else ():
        if problem:
            report.broken[name] = problem
        else:
            report.mended.append(name)
    return report


def only_indexes(store: Store, manifest: Manifest, files: list[str]) -> Iterator[tuple[str, str]]:
    """The mender that mends nothing more."""
    for name in files:
        yield name, "repair it from a copy or from the source"


def _remake_index(store: Store, entry: ShardEntry) -> bool:
    """Put the index of a sound tar, if it has the bytes that the manifest names."""
    reader = HashingReader(store, f"{entry.name}.tar", entry.bytes)
    rows: list[dict[str, str | int | None]] = []
    with tarfile.open(fileobj=reader, mode="r|", bufsize=TAR_BUFFER_BYTES) as tar:
        for header in tar:
            key = header.name.split(".", 1)[0]
            member = next(member for member in MEMBERS if header.name == member_file(key, member))
            stream = tar.extractfile(header)
            assert stream is not None
            if not rows or rows[-1]["key"] != key:
                rows.append({"key": key})
            rows[-1] |= {
                f"{member}_offset": header.offset_data,
                f"{member}_length": header.size,
                f"{member}_crc32": isal_zlib.crc32(stream.read()),
            }
    content = encode_index(rows)
    if hashlib.sha256(content).hexdigest() != entry.index_sha256:
        return False
    store.put(f"{entry.name}.idx", content)
    return True
