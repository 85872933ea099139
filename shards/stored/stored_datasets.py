"""Datasets that are there already as the origin of a new one: other shards, other splits, several as one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from isal import isal_zlib

from astroclip_dist.data.stored.index import MEMBERS, ShardIndex, decode_index
from astroclip_dist.data.stored.manifest import ImageLayout, Manifest, ShardEntry, SpectrumLayout, Split, read_manifest
from astroclip_dist.errors import ConfigError, DataError
from astroclip_dist.store import Store
from shards.layout import Layout
from shards.stored_sample import StoredSample
from shards.writing.dataset_folder import SourceFacts

# Galaxies near each other in a shard are fetched together: at most so many bytes, and so many between two of them.
_READ_BYTES = 32 << 20
_GAP_BYTES = 2 << 20


class StoredDatasets:
    """The origin of ``astroclip shards reshard``: members are copied as they are, through the index, crc checked.

    A partition is a shard. Bands get their statistics anew, since another split has another training set.

    Args:
        urls: folders of datasets of one layout, taken in this order.

    Raises:
        DataError: no dataset there, or one of another layout.
        StorageError: the storage does not answer or refuses.
    """

    name = "reshard"

    def __init__(self, urls: Sequence[str]) -> None:
        stores = [Store(url) for url in urls]
        self._manifests = [read_manifest(store) for store in stores]
        layout = Layout.of(self._manifests[0])
        for store, manifest in zip(stores, self._manifests, strict=True):
            _refuse_other_layout(store, Layout.of(manifest), layout)
        if len({store.url for store in stores}) < len(stores):
            raise ConfigError("DATASET", "the same twice", "Name each dataset once.")
        self.image: ImageLayout | None = layout.image
        self.spectrum: SpectrumLayout | None = layout.spectrum
        self.ivar = layout.ivar
        self._shards: list[tuple[Store, ShardEntry]] = [
            (store, entry) for store, manifest in zip(stores, self._manifests, strict=True) for entry in manifest.shards
        ]

    @property
    def split_fractions(self) -> dict[Split, float]:
        """Those of the first dataset."""
        return self._manifests[0].split_fractions

    def describe(self) -> SourceFacts:
        """The sources of the datasets, each fact with the number of its dataset in front."""
        facts: SourceFacts = {"datasets": len(self._manifests)}
        for number, manifest in enumerate(self._manifests, 1):
            facts |= {f"{number}.sha256": _digest(manifest), f"{number}.samples": sum(manifest.counts.values())}
            facts |= {f"{number}.{name}": value for name, value in manifest.source.items()}
        return facts

    @property
    def partitions(self) -> int:
        return len(self._shards)

    def keys(self, partition: int) -> Sequence[str]:
        return self._index(partition).keys

    def read(self, partition: int, rows: Sequence[int]) -> Iterator[StoredSample | DataError]:
        store, entry = self._shards[partition]
        index = self._index(partition)
        for together in _groups(index, rows):
            start, stop = index.span(together[0], together[-1] + 1, MEMBERS)
            content = store.read_range(f"{entry.name}.tar", start, stop)
            for row in together:
                yield _cut(content, start, index, row, store.locate(f"{entry.name}.tar"))

    def _index(self, partition: int) -> ShardIndex:
        store, entry = self._shards[partition]
        name = f"{entry.name}.idx"
        return decode_index(store.read(name), store.locate(name))


def _groups(index: ShardIndex, rows: Sequence[int]) -> Iterator[list[int]]:
    """Rows that one read fetches."""
    together: list[int] = []
    first = last = 0
    for row in rows:
        start, stop = index.span(row, row + 1, MEMBERS)
        if together and (stop - first > _READ_BYTES or start - last > _GAP_BYTES):
            yield together
            together = []
        first = first if together else start
        last = stop
        together.append(row)
    if together:
        yield together


def _cut(content: memoryview, start: int, index: ShardIndex, row: int, where: str) -> StoredSample | DataError:
    key = index.keys[row]
    members: dict[str, memoryview] = {}
    for member in MEMBERS:
        table = index.members[member]
        offset, length = int(table.offset[row]), int(table.length[row])
        if offset < 0:
            continue
        members[member] = content[offset - start : offset - start + length]
        if isal_zlib.crc32(members[member]) != int(table.crc32[row]):
            return DataError(
                f"{where}: {key}.{member}",
                "bytes differ from the index",
                "Run `astroclip shards verify` on the dataset, and repair it.",
            )
    return StoredSample(key, members)


def _digest(manifest: Manifest) -> str:
    """The same for datasets of the same shards."""
    return hashlib.sha256("".join(entry.sha256 for entry in manifest.shards).encode()).hexdigest()


def _refuse_other_layout(store: Store, layout: Layout, first: Layout) -> None:
    for name in ("image", "spectrum", "ivar"):
        if getattr(layout, name) != getattr(first, name):
            raise DataError(
                f"{store.url}: {name}",
                getattr(layout, name),
                f"That of the first dataset is {getattr(first, name)}: datasets of one layout can become one.",
            )
