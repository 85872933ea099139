"""Build one shard: its rows read from the source, checked, written, and put into the dataset with a receipt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from astroclip_dist.errors import DataError
from astroclip_dist.store import Store
from shards.building.plan import ShardPlan
from shards.building.receipt import Receipt, Settings, SkippedGalaxy, fingerprint, put_receipt
from shards.layout import Layout
from shards.sample import Sample
from shards.source import Origin
from shards.stored_sample import StoredSample
from shards.writing.band_moments import BandMoments, MomentsOfImages
from shards.writing.dataset_folder import put_shard
from shards.writing.open_shard import OpenShard
from shards.writing.scratch import scratch_tar


@dataclass(frozen=True)
class BuildShard:
    """Makes the shards of a build, each in any process on any machine.

    Args:
        settings: of the build; they go into the fingerprint of the receipt.
        skip_bad: how many galaxies may be unusable; the next one is an error.
    """

    store: Store
    source: Origin
    settings: Settings
    skip_bad: int = 0

    def __call__(self, plan: ShardPlan) -> Receipt:
        """Make a shard.

        Raises:
            DataError: the source cannot be read, or too many of its galaxies cannot be used.
            StorageError: a disk is full, or the storage refuses.
        """
        mark = fingerprint(self.settings, plan.digest())
        with OpenShard(scratch_tar(self.store, plan.name)) as shard:
            moments, skipped = write_shard(shard, self.source, plan, self.skip_bad)
            if len(shard):
                closed = shard.close()
                entry = put_shard(self.store, plan.name, plan.split, closed)
                receipt = Receipt(
                    name=plan.name,
                    fingerprint=mark,
                    entry=entry,
                    index_bytes=len(closed.index),
                    moments=moments,
                    skipped=skipped,
                )
            else:
                receipt = Receipt(name=plan.name, fingerprint=mark, entry=None, skipped=skipped)
        put_receipt(self.store, receipt)
        return receipt


def write_shard(
    shard: OpenShard, source: Origin, plan: ShardPlan, skip_bad: int
) -> tuple[BandMoments | None, tuple[SkippedGalaxy, ...]]:
    """Write the galaxies of a plan into a shard.

    Returns:
        The moments of the images, in the training split, and the galaxies that could not be used.

    Raises:
        DataError: the source cannot be read, or more than ``skip_bad`` of the galaxies cannot be used.
    """
    layout = Layout.of(source)
    moments = MomentsOfImages()
    skipped: list[SkippedGalaxy] = []
    for partition, key, sample in _read(source, plan):
        error = _fault(sample, layout)
        if error is not None:
            if len(skipped) >= skip_bad:
                raise error
            skipped.append(SkippedGalaxy(key=key, partition=partition, reason=str(error)))
            continue
        assert not isinstance(sample, DataError)
        if sample.key != key:
            raise DataError(
                f"source {source.name}: partition {partition}",
                f"gives {sample.key} instead of {key}",
                "Its input changed during the build.",
            )
        shard.add(sample)
        if plan.split == "train" and sample.image is not None:
            moments.add(sample.image)
    return moments.whole(), tuple(skipped)


def _fault(sample: Sample | StoredSample | DataError, layout: Layout) -> DataError | None:
    if isinstance(sample, DataError):
        return sample
    try:
        if isinstance(sample, Sample):
            layout.check(sample)
    except DataError as error:
        return error
    return None


def _read(source: Origin, plan: ShardPlan) -> Iterator[tuple[int, str, Sample | StoredSample | DataError]]:
    """Partition, planned key and what the source gives, of each galaxy of a plan."""
    keys = iter(plan.keys)
    for partition, rows in plan.parts:
        given = 0
        for sample in source.read(partition, rows.tolist()):
            given += 1
            if given > len(rows):
                break
            yield partition, next(keys), sample
        if given != len(rows):
            raise DataError(
                f"source {source.name}: partition {partition}",
                f"{given} samples instead of {len(rows)}",
                "Its input changed during the build.",
            )
