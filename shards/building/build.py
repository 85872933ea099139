"""Build a dataset: plan its shards, let workers make them one by one, and write the manifest when all are there.

A build can be stopped at any moment, killed as well, and started again with the same command: shards that are complete
are kept. The same input gives the same bytes, whatever the number of workers and the interruptions.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TextIO

import astroclip_dist
from astroclip_dist.data.stored.manifest import MANIFEST_NAME, Manifest, Split, read_manifest
from astroclip_dist.errors import DataError, StorageError
from astroclip_dist.progress import with_progress
from astroclip_dist.store import Store
from shards.building.executors import Workers
from shards.building.plan import Duplicates, Plan, ShardPlan, Tally
from shards.building.receipt import (
    Receipt,
    Settings,
    fingerprint,
    put_settings,
    read_receipts,
    read_settings,
    refuse_other_settings,
    remove_receipts,
)
from shards.building.shard_task import BuildShard
from shards.defaults import SAMPLES_PER_SHARD
from shards.layout import Layout
from shards.showing.contact_sheet import CONTACT_SHEET_NAME, GALAXIES_ON_SHEET, draw_contact_sheet
from shards.source import Origin
from shards.stored.reading import first_samples
from shards.writing.dataset_folder import (
    SourceFacts,
    check_shard_size,
    full_fractions,
    make_manifest,
    put_manifest,
    refuse_dataset,
    remove_shards,
    shard_files,
)
from shards.writing.scratch import remove_abandoned

SKIPPED_NAME = "skipped.jsonl"

log = logging.getLogger(__name__)


def build(
    source: Origin,
    out_url: str,
    *,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    split_fractions: dict[Split, float] | None = None,
    duplicates: Duplicates = "refuse",
    skip_bad: int = 0,
    workers: Workers | None = None,
    contact_sheet: bool = True,
    progress: TextIO | None = None,
) -> Manifest:
    """Write all samples of a source as a dataset, or go on with a build of the same that was stopped.

    Args:
        out_url: folder of the new dataset.
        samples_per_shard: galaxies of every shard of a split but the last.
        split_fractions: share of train, val and test; the split of a galaxy follows from the hash of its key.
        duplicates: at a key that comes twice, refuse the source, or take the first galaxy only.
        skip_bad: how many galaxies that cannot be used are left out, and listed in ``skipped.jsonl`` of the dataset.
        workers: who makes the shards.
        contact_sheet: also draw the first galaxies into ``contact-sheet.png`` of the dataset.
        progress: where to report (standard error when None).

    Raises:
        DataError: an input that cannot be used, a dataset that is there already, or another build under way there.
        ConfigError: split fractions that do not sum to 1, or an empty shard size.
        StorageError: a disk is full, or the storage refuses.
    """
    check_shard_size(samples_per_shard)
    plan = Plan(source, samples_per_shard, full_fractions(split_fractions), duplicates)
    job = _Build(plan, Store(out_url), skip_bad, progress or sys.stderr)
    return job.run(workers or Workers(), contact_sheet)


def describe_build(plan: Plan) -> Settings:
    """What decides on the bytes of a dataset, as JSON."""
    layout = Layout.of(plan.source)
    return {
        **{f"source {name}": value for name, value in source_facts(plan).items()},
        "image": layout.image and layout.image.model_dump(mode="json"),
        "spectrum": layout.spectrum and layout.spectrum.model_dump(mode="json"),
        "ivar": layout.ivar,
        "splits": plan.split_fractions,
        "duplicates": plan.duplicates,
        "version": astroclip_dist.__version__,
    }


def source_facts(plan: Plan) -> SourceFacts:
    """What the manifest says of the source before anything is read."""
    return {
        "kind": plan.source.name,
        **plan.source.describe(),
        "samples_per_shard": plan.samples_per_shard,
    }


class _Build:
    """One run of a build: the first, or one that goes on."""

    def __init__(self, plan: Plan, store: Store, skip_bad: int, progress: TextIO) -> None:
        self._plan, self._store, self._skip_bad, self._progress = plan, store, skip_bad, progress
        self._settings = describe_build(plan)
        self._receipts: list[Receipt] = []
        self._skipped = 0

    def run(self, workers: Workers, contact_sheet: bool) -> Manifest:
        begun = self._has_begun()
        if begun and self._store.exists(MANIFEST_NAME):
            # Complete: it was killed when only its receipts were left to be removed.
            remove_receipts(self._store)
            return read_manifest(self._store)
        folder = self._store.local_path("")
        new_folder = folder if folder is not None and not folder.exists() else None
        tally = self._plan.count(self._progress)
        try:
            earlier = self._begin(begun)
            self._make_shards(workers, tally, earlier)
            manifest = self._finish(tally, contact_sheet)
        except BaseException:
            self._leave(tally, new_folder)
            raise
        remove_receipts(self._store)
        return manifest

    def _has_begun(self) -> bool:
        """Whether this very build is under way here."""
        self._store.check()
        found = read_settings(self._store)
        if found is None:
            refuse_dataset(self._store)
            return False
        refuse_other_settings(self._store, found, self._settings)
        return True

    def _begin(self, begun: bool) -> dict[str, Receipt]:
        if begun:
            remove_abandoned(self._store)
            return read_receipts(self._store)
        remove_receipts(self._store)
        remove_shards(self._store)
        put_settings(self._store, self._settings)
        return {}

    def _make_shards(self, workers: Workers, tally: Tally, earlier: dict[str, Receipt]) -> None:
        if earlier:
            print(f"{len(earlier):,} of {tally.shards:,} shards are there already", file=self._progress, flush=True)
        left = tally.shards - len(earlier)
        task = BuildShard(self._store, self._plan.source, self._settings, self._skip_bad)
        made = workers.run(task, self._missing(earlier), left)
        with closing(made), closing(with_progress(made, left, "shards", self._progress)) as receipts:
            for receipt in receipts:
                for galaxy in receipt.skipped:
                    log.warning("left out: %s", galaxy.reason)
                self._take(receipt)
        if (len(self._receipts), sum(map(_planned, self._receipts))) != (tally.shards, tally.samples):
            raise DataError(
                f"source {self._plan.source.name}", "other keys than before", "Its input changed during the build."
            )

    def _missing(self, earlier: dict[str, Receipt]) -> Iterator[ShardPlan]:
        """The plans of shards that are to be made; the receipts of all others are taken."""
        for plan in self._plan.shards():
            receipt = earlier.get(plan.name)
            if receipt is not None and receipt.fingerprint == fingerprint(self._settings, plan.digest()):
                self._take(receipt)
            else:
                yield plan

    def _take(self, receipt: Receipt) -> None:
        self._receipts.append(receipt)
        self._skipped += len(receipt.skipped)
        if self._skipped > self._skip_bad:
            last = receipt.skipped[-1]
            raise DataError(
                f"source {self._plan.source.name}",
                f"{self._skipped} galaxies cannot be used, --skip-bad allows {self._skip_bad}; the last: {last.reason}",
                "Mend the input, or allow more of them.",
            )

    def _finish(self, tally: Tally, contact_sheet: bool) -> Manifest:
        # Longer names are higher numbers; make_manifest puts the splits in order.
        receipts = sorted(self._receipts, key=lambda receipt: (len(receipt.name), receipt.name))
        skipped = [galaxy for receipt in receipts for galaxy in receipt.skipped]
        facts = {
            **source_facts(self._plan),
            "duplicates_left_out": tally.duplicates,
            "galaxies_skipped": len(skipped),
        }
        manifest = make_manifest(
            Layout.of(self._plan.source),
            facts,
            self._plan.split_fractions,
            [(receipt.entry, receipt.moments) for receipt in receipts if receipt.entry is not None],
        )
        if contact_sheet and manifest.shards:
            shown = first_samples(self._store, manifest, GALAXIES_ON_SHEET)
            self._store.put(CONTACT_SHEET_NAME, draw_contact_sheet(shown, manifest.image, manifest.spectrum))
        if skipped:
            lines = [f"{galaxy.model_dump_json()}\n" for galaxy in skipped]
            self._store.put(SKIPPED_NAME, "".join(lines).encode())
        remove_shards(self._store, keep=shard_files(manifest.shards))
        put_manifest(self._store, manifest)
        return manifest

    def _leave(self, tally: Tally, new_folder: Path | None) -> None:
        """Say how to go on, or remove everything where no shard is complete."""
        try:
            complete = len(read_receipts(self._store))
            if complete:
                print(
                    f"{complete:,} of {tally.shards:,} shards are complete in {self._store.url}: the same command goes"
                    " on from there. To begin anew, remove that folder first.",
                    file=self._progress,
                    flush=True,
                )
                return
            remove_shards(self._store)
            remove_receipts(self._store)
        except StorageError as problem:
            # What stopped the build is the error to show; a folder without manifest is no dataset.
            log.warning("the unfinished build was left as it is: %s", problem)
            return
        if new_folder is not None:
            with contextlib.suppress(OSError):  # not there, or other people's files are in it
                new_folder.rmdir()


def _planned(receipt: Receipt) -> int:
    """Galaxies that the plan had put into a shard."""
    return (receipt.entry.samples if receipt.entry else 0) + len(receipt.skipped)
