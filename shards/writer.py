"""Write a dataset: samples in, shards with their indexes and, last of all, the manifest out."""

from __future__ import annotations

import logging
import math
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from astroclip_dist.data.manifest import (
    MANIFEST_NAME,
    SPLITS,
    BandStatistics,
    ImageLayout,
    Manifest,
    ShardEntry,
    SpectrumLayout,
    Split,
    split_of,
)
from astroclip_dist.errors import ConfigError, DataError, StorageError
from astroclip_dist.store import Store
from shards.open_shard import OpenShard
from shards.sample import Sample, check_sample
from shards.seen_keys import SeenKeys

# Some 680 MB with images of 152 px: large enough for object storage, small enough to hold two windows in memory.
SAMPLES_PER_SHARD = 2000
SPLIT_FRACTIONS: dict[Split, float] = {"train": 0.8, "val": 0.1, "test": 0.1}
# Shards, and the temporary copies that a killed write leaves on a local disk.
SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{6}}\.(tar|idx)(#\d+)?")

log = logging.getLogger(__name__)


@dataclass
class _BandMoments:
    """Mean and sum of squared deviations of each band, merged image by image in float64 (Chan et al. 1979)."""

    bands: int
    pixels: int = 0
    mean: np.ndarray = field(init=False)
    squares: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.mean = np.zeros(self.bands)
        self.squares = np.zeros(self.bands)

    def add(self, image: np.ndarray) -> None:
        flux = image.reshape(self.bands, -1).astype(np.float64)
        mean = flux.mean(axis=1)
        shift = mean - self.mean
        total = self.pixels + flux.shape[1]
        self.squares += ((flux - mean[:, None]) ** 2).sum(axis=1) + shift**2 * (self.pixels * flux.shape[1] / total)
        self.mean += shift * (flux.shape[1] / total)
        self.pixels = total


class ShardWriter:
    """Writes one dataset to a URL; use as a context manager, and end with :meth:`finish`.

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
        source: dict[str, str | int | float | bool | None],
        *,
        samples_per_shard: int = SAMPLES_PER_SHARD,
        split_fractions: dict[Split, float] | None = None,
    ) -> None:
        self.store = Store(url)
        self._image, self._spectrum, self._ivar, self._source = image, spectrum, ivar, source
        self._samples_per_shard = samples_per_shard
        self._fractions = _check_fractions(split_fractions or SPLIT_FRACTIONS)
        if samples_per_shard < 1:
            raise ConfigError("samples per shard", samples_per_shard, "Use at least 1; the default is 2000.")
        self._seen = SeenKeys()
        self._moments = _BandMoments(len(image.bands)) if image else None
        self._open: dict[Split, OpenShard] = {}
        self._entries: dict[Split, list[ShardEntry]] = {split: [] for split in SPLITS}
        self._written: list[str] = []
        self._finished = False
        self.store.check()
        if self.store.exists(MANIFEST_NAME):
            raise DataError(
                self.store.locate(MANIFEST_NAME), "there already", "Choose another folder, or remove this dataset."
            )
        self._remove_leftovers()
        self._folder = tempfile.TemporaryDirectory(prefix="astroclip-shards-")

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for shard in self._open.values():
            shard.discard()
        self._folder.cleanup()
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
        check_sample(sample, self._image, self._spectrum)
        if sample.spectrum is not None and (sample.ivar is not None) != self._ivar:
            raise DataError(
                f"sample {sample.key}: ivar",
                "missing" if self._ivar else "present",
                "Every spectrum of a dataset has inverse variances, or none has.",
            )
        if sample.ivar is not None and sample.spectrum is None:
            raise DataError(f"sample {sample.key}: ivar", "present without a spectrum", "Give both or none.")
        if not self._seen.add(sample.key):
            raise DataError(f"sample {sample.key}: key", "came twice", "Keep one row or file of each galaxy.")
        split = split_of(sample.key, self._fractions)
        if split not in self._open:
            self._open[split] = OpenShard(Path(self._folder.name) / f"{split}.tar")
        shard = self._open[split]
        shard.add(sample)
        if split == "train" and self._moments is not None and sample.image is not None:
            self._moments.add(sample.image)
        if len(shard) >= self._samples_per_shard:
            self._store_shard(split)

    def attach(self, name: str, content: bytes) -> None:
        """Put a file that is no shard into the dataset (a contact sheet)."""
        self._written.append(name)
        self.store.put(name, content)

    def finish(self) -> Manifest:
        """Write the last shards and then the manifest, whose presence says that the dataset is complete.

        Raises:
            DataError: no sample was added, or another build has written a manifest meanwhile.
            StorageError: the storage refuses.
        """
        for split in list(self._open):
            self._store_shard(split)
        manifest = Manifest(
            source=self._source,
            image=self._image,
            spectrum=self._spectrum,
            ivar=self._ivar,
            counts={split: sum(entry.samples for entry in self._entries[split]) for split in SPLITS},
            split_fractions=self._fractions,
            band_statistics=self._band_statistics(),
            shards=tuple(entry for split in SPLITS for entry in self._entries[split]),
        )
        if not manifest.shards:
            raise DataError(self.store.url, "no samples", "The source gave none: check its input.")
        try:
            self.store.put(MANIFEST_NAME, manifest.model_dump_json(indent=2).encode(), create_only=True)
        except FileExistsError as error:
            # Its shards have the names of ours: whose bytes lie there now is unknown, so nothing is removed.
            self._finished = True
            raise DataError(
                self.store.locate(MANIFEST_NAME),
                "written by another build meanwhile",
                "Run `astroclip shards verify` on it; build into a folder of your own.",
            ) from error
        self._finished = True
        return manifest

    def _store_shard(self, split: Split) -> None:
        shard = self._open.pop(split)
        name = f"{split}-{len(self._entries[split]):06d}"
        with shard:
            closed = shard.close()
            self._written += [f"{name}.tar", f"{name}.idx"]
            self.store.put(f"{name}.tar", closed.path)
            self.store.put(f"{name}.idx", closed.index)
        self._entries[split].append(
            ShardEntry(
                name=name,
                bytes=closed.size,
                samples=closed.samples,
                split=split,
                sha256=closed.sha256,
                index_sha256=closed.index_sha256,
            )
        )

    def _band_statistics(self) -> tuple[BandStatistics, ...]:
        if self._image is None or self._moments is None or self._moments.pixels == 0:
            return ()
        deviations = np.sqrt(self._moments.squares / self._moments.pixels)
        return tuple(
            BandStatistics(band=band, mean=float(mean), std=float(std))
            for band, mean, std in zip(self._image.bands, self._moments.mean, deviations, strict=True)
        )

    def _remove_leftovers(self) -> None:
        self.store.delete([found.name for found in self.store.list() if SHARD_NAME.fullmatch(found.name)])
        folder = self.store.local_path("")
        for path in folder.iterdir() if folder is not None and folder.is_dir() else ():
            if SHARD_NAME.fullmatch(path.name):
                path.unlink()


def _check_fractions(fractions: dict[Split, float]) -> dict[Split, float]:
    full = {split: float(fractions.get(split, 0.0)) for split in SPLITS}
    if min(full.values()) < 0 or not math.isclose(sum(full.values()), 1.0, abs_tol=1e-9):
        raise ConfigError("split fractions", tuple(full.values()), "They are >= 0 and sum to 1, such as 0.8 0.1 0.1.")
    return full
