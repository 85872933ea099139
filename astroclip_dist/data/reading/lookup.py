"""Single samples by their place: dataset, shard, row. One ranged read a sample, checked like every other read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from astroclip_dist.data.ordering.order import Piece
from astroclip_dist.data.reading.reader import Slot, load_piece
from astroclip_dist.data.stored.dataset import Shard
from astroclip_dist.data.stored.index import ShardIndex
from astroclip_dist.data.stored.manifest import ImageLayout, Manifest, SpectrumLayout, read_manifest
from astroclip_dist.errors import DataError
from astroclip_dist.store import Store

INDEXES_IN_MEMORY = 64


class SampleLookup:
    """Random access to the samples of some datasets.

    Args:
        urls: the datasets, in the order that their numbers refer to.

    Raises:
        DataError: a dataset without a manifest, or with a wrong one.
        CredentialsError, StorageError
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._stores = [Store(url) for url in urls]
        self.manifests: list[Manifest] = [read_manifest(store) for store in self._stores]
        self._shards = [
            {entry.name: Shard(store, entry, number) for entry in manifest.shards}
            for number, (store, manifest) in enumerate(zip(self._stores, self.manifests, strict=True))
        ]
        self._index = lru_cache(INDEXES_IN_MEMORY)(lambda dataset, shard: self._shard(dataset, shard).read_index())

    def read(self, dataset: int, shard: str, row: int, member: str, key: str) -> np.ndarray:
        """One array of one sample.

        Args:
            member: ``image``, ``spectrum`` or ``ivar``.
            key: of the sample that is expected there.

        Returns:
            (bands, H, W) nanomaggies, or (wavelengths,) 1e-17 erg/s/cm2/A; of the manifest's dtype.

        Raises:
            DataError: no such shard or row, another sample there, an absent or damaged member.
        """
        place = self._shard(dataset, shard)
        index: ShardIndex = self._index(dataset, shard)
        if not 0 <= row < len(index) or index.keys[row] != key:
            raise DataError(
                f"{place.url}: row {row}",
                index.keys[row] if 0 <= row < len(index) else f"only {len(index)} samples",
                f"Expected is {key}: the dataset is not the one that was embedded.",
            )
        layout = self.layout(dataset, member)
        array = np.empty(layout.shape, layout.dtype)
        piece = load_piece(place, Piece(0, row, row + 1), [member], index=index)
        piece.read_arrays(row, [Slot(member, array.data.cast("B"), array.dtype, array.shape)])
        return array

    def layout(self, dataset: int, member: str) -> ImageLayout | SpectrumLayout:
        """Shape and dtype of a member.

        Raises:
            DataError: the dataset has none.
        """
        manifest = self.manifests[dataset]
        layout = manifest.image if member == "image" else manifest.spectrum
        if layout is None:
            raise DataError(f"{self._stores[dataset].url}: {member}", "absent", "The dataset has none.")
        return layout

    def _shard(self, dataset: int, shard: str) -> Shard:
        try:
            return self._shards[dataset][shard]
        except (IndexError, KeyError) as error:
            raise DataError(
                f"dataset {dataset}, shard {shard}",
                "not there",
                "The datasets are not the ones that were embedded.",
            ) from error
