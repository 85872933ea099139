"""Write a dataset from Python, sample by sample: shards with their indexes and, last of all, the manifest."""

from __future__ import annotations

import logging
from types import TracebackType

import numpy as np

from astroclip_dist.data.stored.manifest import (
    ImageLayout,
    Manifest,
    ShardEntry,
    SpectrumLayout,
    Split,
    key_hash,
    split_of,
)
from astroclip_dist.errors import DataError, StorageError
from astroclip_dist.store import Store
from shards.defaults import SAMPLES_PER_SHARD
from shards.layout import Layout
from shards.sample import Sample
from shards.writing.band_moments import BandMoments, MomentsOfImages
from shards.writing.dataset_folder import (
    SourceFacts,
    check_shard_size,
    full_fractions,
    make_manifest,
    put_manifest,
    put_shard,
    refuse_dataset,
    remove_shards,
    shard_name,
)
from shards.writing.open_shard import OpenShard
from shards.writing.scratch import scratch_tar
from shards.writing.seen_keys import SeenKeys

log = logging.getLogger(__name__)


class ShardWriter:
    """Writes one dataset to a URL; use as a context manager, and end with :meth:`finish`.

    For samples that Python makes in their order; survey files are built by :func:`shards.building.build.build`.
    Leaving the ``with`` block without :meth:`finish` removes what was written. A killed process leaves shards but no
    manifest: the next build at the same URL removes them.

    Args:
        url: folder of the dataset; it must not hold one yet.
        image, spectrum, ivar: what samples may have; ``ivar`` says that every spectrum comes with inverse variances.
        source: what made the dataset, as scalars.
        samples_per_shard: a shard is closed when it holds so many.
        split_fractions: share of train, val and test; the split of a galaxy follows from the hash of its key.

    Raises:
        DataError: a dataset is there already.
        ConfigError: split fractions that do not sum to 1, or an empty shard size.
        StorageError: the storage does not answer or refuses.
    """

    def __init__(
        self,
        url: str,
        image: ImageLayout | None,
        spectrum: SpectrumLayout | None,
        ivar: bool,
        source: SourceFacts,
        *,
        samples_per_shard: int = SAMPLES_PER_SHARD,
        split_fractions: dict[Split, float] | None = None,
    ) -> None:
        self.store = Store(url)
        self._layout, self._source = Layout(image, spectrum, ivar), source
        self._samples_per_shard = samples_per_shard
        self._fractions = full_fractions(split_fractions)
        check_shard_size(samples_per_shard)
        self._seen = SeenKeys()
        self._open: dict[Split, OpenShard] = {}
        self._moments = MomentsOfImages()
        self._shards: list[tuple[ShardEntry, BandMoments | None]] = []
        self._written: list[str] = []
        self._finished = False
        refuse_dataset(self.store)
        remove_shards(self.store)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for shard in self._open.values():
            shard.discard()
        if not self._finished:
            try:
                self.store.delete(self._written)
            except StorageError as problem:
                # What stopped the build is the error to show; a folder without manifest is no dataset.
                log.warning("incomplete shards were left behind: %s", problem)

    def add(self, sample: Sample) -> None:
        """Write one galaxy into the shard of its split.

        Raises:
            DataError: the sample does not fit the layout, lacks what the layout promises, or its key came before.
            StorageError: a disk is full, or the storage refuses a shard.
        """
        self._layout.check(sample)
        if not self._seen.add(np.array([key_hash(sample.key)], np.uint64))[0]:
            raise DataError(f"sample {sample.key}: key", "came twice", "Keep one row or file of each galaxy.")
        split = split_of(sample.key, self._fractions)
        if split not in self._open:
            self._open[split] = OpenShard(scratch_tar(self.store, self._next_name(split)))
        shard = self._open[split]
        shard.add(sample)
        if split == "train" and sample.image is not None:
            self._moments.add(sample.image)
        if len(shard) >= self._samples_per_shard:
            self._close(split)

    def finish(self) -> Manifest:
        """Write the last shards and then the manifest, whose presence says that the dataset is complete.

        Raises:
            DataError: no sample was added, or another build has written a manifest meanwhile.
            StorageError: the storage refuses.
        """
        for split in list(self._open):
            self._close(split)
        manifest = make_manifest(self._layout, self._source, self._fractions, self._shards)
        try:
            put_manifest(self.store, manifest)
        except DataError:
            # Another build has written its manifest, and its shards have the names of ours: whose bytes lie there now
            # is unknown, so nothing is removed.
            self._finished = bool(manifest.shards)
            raise
        self._finished = True
        return manifest

    def _next_name(self, split: Split) -> str:
        return shard_name(split, sum(entry.split == split for entry, _ in self._shards))

    def _close(self, split: Split) -> None:
        name = self._next_name(split)
        self._written += [f"{name}.tar", f"{name}.idx"]
        moments: BandMoments | None = None
        if split == "train":
            moments, self._moments = self._moments.whole(), MomentsOfImages()
        with self._open.pop(split) as shard:
            self._shards.append((put_shard(self.store, name, split, shard.close()), moments))
