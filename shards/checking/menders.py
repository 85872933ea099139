"""Where damaged files of a dataset come back from: a copy of it, or a new build of its shards from the source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from astroclip_dist.data.stored.manifest import Manifest, ShardEntry, read_manifest
from astroclip_dist.errors import DataError
from astroclip_dist.progress import with_progress
from astroclip_dist.store import MissingObjectError, Store
from shards.building.build import source_facts
from shards.building.executors import Workers
from shards.building.plan import Plan, ShardPlan
from shards.building.shard_task import write_shard
from shards.checking.hashing_reader import HashingReader
from shards.checking.repair import RepairReport, repair
from shards.layout import Layout
from shards.source import Origin
from shards.writing.dataset_folder import put_file, put_shard
from shards.writing.open_shard import OpenShard
from shards.writing.scratch import scratch_tar

_OTHER = "its sha256 is not the manifest's"


def repair_from_copy(url: str, copy_url: str, progress: TextIO | None = None) -> RepairReport:
    """Bring back what is damaged from a copy of the dataset.

    Raises:
        DataError: no dataset there.
        StorageError: the storage of either does not answer or refuses.
    """
    copy = Store(copy_url)
    copy.check()

    def mend(store: Store, manifest: Manifest, files: list[str]) -> Iterator[tuple[str, str]]:
        entries = {entry.name: entry for entry in manifest.shards}
        with closing(with_progress(files, len(files), "files", progress)) as names:
            for name in names:
                yield name, _restore(copy, store, name, entries[name.rsplit(".", 1)[0]])

    return repair(url, mend, progress)


def _restore(copy: Store, store: Store, name: str, entry: ShardEntry) -> str:
    """Copy one file if it is the right one; the reason why not otherwise."""
    try:
        if name.endswith(".idx"):
            content = copy.read(name)
            if hashlib.sha256(content).hexdigest() != entry.index_sha256:
                return f"in the copy {_OTHER}"
            store.put(name, content)
            return ""
        size = next((found.size for found in copy.list() if found.name == name), None)
        if size != entry.bytes:
            return "not in the copy" if size is None else f"in the copy it has {size} bytes instead of {entry.bytes}"
        path = scratch_tar(store, entry.name)
        try:
            if _download(copy, name, size, path) != entry.sha256:
                return f"in the copy {_OTHER}"
            put_file(store, name, path)
        finally:
            path.unlink(missing_ok=True)
    except MissingObjectError:
        return "not in the copy"
    return ""


def _download(store: Store, name: str, size: int, path: Path) -> str:
    """Returns the sha256 of what came."""
    reader = HashingReader(store, name, size)
    with path.open("xb") as file:
        while piece := reader.read():
            file.write(piece)
    return reader.sha256.hexdigest()


def repair_from_source(
    url: str, plan: Plan, skip_bad: int = 0, workers: Workers | None = None, progress: TextIO | None = None
) -> RepairReport:
    """Build damaged shards again.

    Args:
        plan, skip_bad: those of the build.
        workers: who looks for damage and builds.

    Raises:
        DataError: no dataset there, or one that was built from something else or otherwise.
        StorageError: the storage does not answer or refuses.
    """

    def mend(store: Store, manifest: Manifest, files: list[str]) -> Iterator[tuple[str, str]]:
        names = {name.rsplit(".", 1)[0] for name in files}
        task = RebuildShard(store, plan.source, {e.name: e for e in manifest.shards if e.name in names}, skip_bad)
        plans = (shard for shard in plan.shards() if shard.name in names)
        made = (workers or Workers()).run(task, plans, len(names))
        problems = dict.fromkeys(names, "the source has no such shard")
        with closing(made), closing(with_progress(made, len(names), "shards", progress)) as outcomes:
            problems |= dict(outcomes)
        yield from ((name, problems[name.rsplit(".", 1)[0]]) for name in files)

    _refuse_other_build(Store(url), read_manifest(Store(url)), plan)
    return repair(url, mend, progress, workers)


@dataclass(frozen=True)
class RebuildShard:
    """Builds a shard again, and puts it if it is what the manifest says.

    Args:
        expected: the manifest's entries of the shards to be built.
        skip_bad: how many galaxies of a shard may be unusable.
    """

    store: Store
    source: Origin
    expected: Mapping[str, ShardEntry]
    skip_bad: int

    def __call__(self, plan: ShardPlan) -> tuple[str, str]:
        """Returns the shard's name, and the reason why it could not be mended, or none ("").

        Raises:
            StorageError: a disk is full, or the storage refuses.
        """
        entry = self.expected[plan.name]
        with OpenShard(scratch_tar(self.store, plan.name)) as shard:
            try:
                write_shard(shard, self.source, plan, self.skip_bad)
            except DataError as error:
                return plan.name, str(error)
            closed = shard.close()
            if (closed.sha256, closed.index_sha256) != (entry.sha256, entry.index_sha256):
                return plan.name, f"the source gives {closed.samples} galaxies of other bytes now: {_OTHER}"
            put_shard(self.store, plan.name, plan.split, closed)
        return plan.name, ""


def _refuse_other_build(store: Store, manifest: Manifest, plan: Plan) -> None:
    layout, stored = Layout.of(plan.source), Layout.of(manifest)
    compared = {
        "splits": (plan.split_fractions, manifest.split_fractions),
        **{name: (getattr(layout, name), getattr(stored, name)) for name in ("image", "spectrum", "ivar")},
        **{
            name: (value, manifest.source[name])
            for name, value in source_facts(plan).items()
            if name in manifest.source  # an older version of the command may have said less
        },
    }
    for name, (asked, built) in compared.items():
        if asked != built:
            raise DataError(
                store.url, f"built with {name} = {built}, not {asked}", "Repair it with the arguments of its build."
            )
