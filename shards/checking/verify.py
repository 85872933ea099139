"""Check a dataset byte by byte against its manifest and indexes, and name every fault."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import TextIO

import numpy as np

from astroclip_dist.data.stored.index import decode_index
from astroclip_dist.data.stored.manifest import Manifest, ShardEntry, read_manifest
from astroclip_dist.progress import with_progress
from astroclip_dist.store import Store
from shards.building.executors import Workers
from shards.checking.check_shard import CheckedShard, CheckShard, Fault
from shards.layout import Layout
from shards.writing.dataset_folder import SHARD_NAME, shard_files

# Of this process, where no other workers are asked for: they wait for storage together, and hash side by side.
_THREADS = 4


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


def verify(url: str, progress: TextIO | None = None, workers: Workers | None = None) -> Report:
    """Read a whole dataset and compare: sizes, hashes, checksums, tar headers, keys, splits, counts, array layouts.

    Args:
        progress: where to report (standard error when None).
        workers: who reads (threads of this process when None, or one).

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
    task = CheckShard(store, Layout.of(manifest), manifest.split_fractions)
    shards = [(entry, sizes.get(f"{entry.name}.tar")) for entry in manifest.shards]
    found: dict[str, CheckedShard] = {}
    outcomes = _run(task, shards, workers)
    with closing(outcomes), closing(with_progress(outcomes, len(shards), "shards", progress)) as checked:
        for outcome in checked:
            report.shards += 1
            report.samples += len(outcome.hashes)
            report.bytes += outcome.bytes
            found[outcome.entry.name] = outcome
    in_order = [found[entry.name] for entry in manifest.shards]
    report.faults += [fault for outcome in in_order for fault in outcome.faults]
    report.faults += _duplicate_keys(store, manifest, [outcome.hashes for outcome in in_order])
    return report


def _run(
    task: CheckShard, shards: Sequence[tuple[ShardEntry, int | None]], workers: Workers | None
) -> Generator[CheckedShard]:
    if workers is not None and (workers.ray_address is not None or (workers.count or 1) > 1):
        yield from workers.run(task, shards, len(shards))
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            yield from pool.map(task, shards)
        finally:
            pool.shutdown(cancel_futures=True)


def _check_names(manifest: Manifest, sizes: dict[str, int]) -> list[Fault]:
    """Counts that do not add up, and shards that the manifest does not know."""
    faults = []
    known = shard_files(manifest.shards)
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
