"""A dataset as training and embedding see it: the shards of one split over one or several dataset URLs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from astroclip_dist.data.index import ShardIndex, decode_index
from astroclip_dist.data.manifest import (
    ImageLayout,
    Manifest,
    ShardEntry,
    SpectrumLayout,
    Split,
    read_manifest,
)
from astroclip_dist.errors import DataError
from astroclip_dist.store import MissingObjectError, Store


@dataclass(frozen=True)
class Shard:
    """One tar of a dataset. ``dataset`` is the number of its dataset among the URLs given."""

    store: Store
    entry: ShardEntry
    dataset: int

    @property
    def tar_name(self) -> str:
        return f"{self.entry.name}.tar"

    @property
    def url(self) -> str:
        return self.store.locate(self.tar_name)

    def read_index(self) -> ShardIndex:
        """The shard's byte index.

        Raises:
            DataError: missing, damaged, or not that of this shard.
        """
        name = f"{self.entry.name}.idx"
        mend = "Run `astroclip shards verify` on the dataset and build it again."
        try:
            index = decode_index(self.store.read(name), self.store.locate(name))
        except MissingObjectError as error:
            raise DataError(self.store.locate(name), "the shard's index is missing", mend) from error
        if len(index) != self.entry.samples:
            raise DataError(
                self.store.locate(name), f"{len(index)} samples; the manifest says {self.entry.samples}", mend
            )
        return index


@dataclass(frozen=True)
class Dataset:
    """Shards with one layout. Opening costs one manifest a URL; nothing grows with the number of samples."""

    urls: tuple[str, ...]
    manifests: tuple[Manifest, ...]
    shards: tuple[Shard, ...]
    image: ImageLayout | None
    spectrum: SpectrumLayout | None

    @classmethod
    def open(cls, urls: Sequence[str], splits: Sequence[Split]) -> Dataset:
        """Read the manifests of some datasets and take the shards of some splits.

        Raises:
            DataError: a manifest missing or wrong, layouts that differ, or no sample in the splits.
            CredentialsError, StorageError
        """
        stores = [Store(url) for url in urls]
        manifests = tuple(read_manifest(store) for store in stores)
        for store, manifest in zip(stores[1:], manifests[1:], strict=True):
            for part in ("image", "spectrum"):
                if getattr(manifest, part) != getattr(manifests[0], part):
                    raise DataError(
                        f"{store.url}: {part} layout",
                        getattr(manifest, part),
                        f"Datasets read together have one layout; that of {stores[0].url} differs.",
                    )
        shards = tuple(
            Shard(store, entry, number)
            for number, (store, manifest) in enumerate(zip(stores, manifests, strict=True))
            for entry in manifest.shards
            if entry.split in splits
        )
        if not shards:
            counts = {split: n for manifest in manifests for split, n in manifest.counts.items()}
            raise DataError(
                f"{', '.join(store.url for store in stores)}: split {'+'.join(splits)}",
                "no samples",
                f"The dataset has {counts}: choose another split, or build it with other split fractions.",
            )
        return cls(tuple(store.url for store in stores), manifests, shards, manifests[0].image, manifests[0].spectrum)

    @property
    def shard_samples(self) -> np.ndarray:
        """(shards,) int64, samples of each shard."""
        return np.array([shard.entry.samples for shard in self.shards], dtype=np.int64)

    def layout(self, member: str) -> ImageLayout | SpectrumLayout:
        """Shape and dtype of an array member.

        Raises:
            DataError: the dataset has no such member.
        """
        layout = self.image if member == "image" else self.spectrum
        if layout is None or (member == "ivar" and not all(manifest.ivar for manifest in self.manifests)):
            raise DataError(
                f"{', '.join(self.urls)}: {member}", "absent", f"Choose a dataset whose samples have {member}."
            )
        return layout
