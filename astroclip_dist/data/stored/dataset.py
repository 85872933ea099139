"""A dataset as training and embedding see it: the shards of one split over one or several dataset URLs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from astroclip_dist.data.stored.index import ShardIndex, decode_index
from astroclip_dist.data.stored.manifest import (
    ImageLayout,
    Manifest,
    ShardEntry,
    SpectrumLayout,
    Split,
    read_manifest,
)
from astroclip_dist.errors import DamagedError, DataError
from astroclip_dist.store import MissingObjectError, Store

_LOOKS = 4


@dataclass(frozen=True, slots=True)
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
        """The shard's byte index, its bytes compared with the manifest's hash.

        Raises:
            DamagedError: missing, damaged, or not that of this shard.
            CredentialsError, StorageError
        """
        name = f"{self.entry.name}.idx"
        where = self.store.locate(name)
        mend = "Run `astroclip shards verify` on the dataset; then repair it, or build it again."
        for _ in range(_LOOKS):  # it may be damaged on its way only
            try:
                data = self.store.read(name)
            except MissingObjectError as error:
                raise DamagedError(where, "the shard's index is missing", mend) from error
            if hashlib.sha256(data).hexdigest() == self.entry.index_sha256:
                break
        else:
            raise DamagedError(where, "its sha256 is not the manifest's", mend)
        index = decode_index(data, where)
        if len(index) != self.entry.samples:
            raise DamagedError(where, f"{len(index)} samples; the manifest says {self.entry.samples}", mend)
        if not index.lies_within(self.entry.bytes):
            raise DamagedError(where, f"members beyond the {self.entry.bytes} bytes of the tar", mend)
        return index


@dataclass(frozen=True)
class Dataset:
    """Shards that are read together. Opening costs one manifest a URL; nothing grows with the number of samples.

    Attributes:
        urls: of the datasets.
        groups: the shards that share an order: all in one group, or, with weights, a group for each URL.
        weights: samples of each group in a batch, relative to the others; None for a single group.
        image, spectrum: the layout of all that have images, or spectra.
    """

    urls: tuple[str, ...]
    manifests: tuple[Manifest, ...]
    groups: tuple[tuple[Shard, ...], ...]
    weights: tuple[float, ...] | None
    image: ImageLayout | None
    spectrum: SpectrumLayout | None

    @classmethod
    def open(
        cls,
        urls: Sequence[str],
        splits: Sequence[Split],
        weights: Sequence[float] | None = None,
        *,
        patient: bool = False,
    ) -> Dataset:
        """Read the manifests of some datasets and take the shards of some splits.

        Args:
            patient: as for ``read_manifest``.

        Raises:
            DataError: a manifest missing or wrong, layouts that differ, or no sample in the splits.
            CredentialsError, StorageError
        """
        stores = [Store(url) for url in urls]
        manifests = tuple(read_manifest(store, patient) for store in stores)
        groups = [
            tuple(Shard(store, entry, number) for entry in manifest.shards if entry.split in splits)
            for number, (store, manifest) in enumerate(zip(stores, manifests, strict=True))
        ]
        if weights is None:
            groups = [tuple(shard for group in groups for shard in group)]
        for group, store in zip(groups, stores, strict=False):
            if not group:
                counts = [manifest.counts for manifest in manifests]
                raise DataError(
                    f"{store.url if weights else ', '.join(urls)}: split {'+'.join(splits)}",
                    "no samples",
                    f"The samples are {counts}: choose another split, or build it with other split fractions.",
                )
        return cls(
            tuple(store.url for store in stores),
            manifests,
            tuple(groups),
            None if weights is None else tuple(weights),
            _common_layout("image", stores, [manifest.image for manifest in manifests]),
            _common_layout("spectrum", stores, [manifest.spectrum for manifest in manifests]),
        )

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All shards, group after group."""
        return tuple(shard for group in self.groups for shard in group)

    @property
    def shard_samples(self) -> np.ndarray:
        """(shards,) int64, samples of each shard."""
        return np.array([shard.entry.samples for shard in self.shards], dtype=np.int64)

    def layout(self, member: str) -> ImageLayout | SpectrumLayout:
        """Shape and dtype of an array member.

        Raises:
            DataError: one of the datasets has no such member.
        """
        part = "image" if member == "image" else "spectrum"
        for url, manifest in zip(self.urls, self.manifests, strict=True):
            if getattr(manifest, part) is None or (member == "ivar" and not manifest.ivar):
                raise DataError(f"{url}: {member}", "absent", f"Choose a dataset whose samples have {member}.")
        layout = getattr(self, part)
        assert layout is not None
        return layout


L = TypeVar("L", ImageLayout, SpectrumLayout)


def _common_layout(part: str, stores: Sequence[Store], layouts: Sequence[L | None]) -> L | None:
    """The layout of those datasets that have one; a dataset without images may lie beside one with them."""
    found = [(store, layout) for store, layout in zip(stores, layouts, strict=True) if layout is not None]
    for store, layout in found[1:]:
        if layout != found[0][1]:
            raise DataError(
                f"{store.url}: {part} layout",
                layout,
                f"Datasets read together have one layout; that of {found[0][0].url} differs.",
            )
    return found[0][1] if found else None
