"""Pairs of an image of one dataset and a spectrum of another, as a match table lists them (``astroclip shards match``).

Catalogue A of the match is that of the images, B that of the spectra. The table is sorted by the images' shards and
rows, so that a partition, which is a block of it, reads images that lie close together.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple, Self

import pyarrow as pa

from astroclip_dist.data.stored.dataset import Shard
from astroclip_dist.data.stored.index import ShardIndex
from astroclip_dist.data.stored.manifest import ImageLayout, Manifest, SpectrumLayout, read_manifest
from astroclip_dist.errors import DataError
from astroclip_dist.store import Store
from shards.crossmatch.match_table import MatchTable
from shards.sample import Sample
from shards.stored.reading import read_sample

PARTITION_ROWS = 2048
_THREADS = 8
_INDEXES_IN_MEMORY = 128
KeyOf = Literal["spectrum", "image"]


class _Pair(NamedTuple):
    key_a: str
    shard_a: str
    row_a: int
    key_b: str
    shard_b: str
    row_b: int
    separation_arcsec: float | None


_COLUMNS = _Pair._fields


class _OpenDataset:
    """Samples of one dataset by shard and row; keeps the indexes of the shards that were last read."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self.manifest: Manifest = read_manifest(self.store)
        self._shards = {entry.name: Shard(self.store, entry, 0) for entry in self.manifest.shards}
        self._index = lru_cache(_INDEXES_IN_MEMORY)(lambda name: self._shards[name].read_index())

    def read(self, shard: str, row: int, key: str) -> Sample:
        """One sample, its bytes compared with the index.

        Raises:
            DataError: another galaxy lies there, or it is damaged.
            StorageError
        """
        mend = "The match was made with another dataset: make its catalogue and the match again."
        if shard not in self._shards:
            raise DataError(f"{self.store.url}: shard {shard}", "not there", mend)
        index: ShardIndex = self._index(shard)
        if not 0 <= row < len(index) or index.keys[row] != key:
            found = index.keys[row] if 0 <= row < len(index) else f"only {len(index)} samples"
            raise DataError(f"{self.store.locate(shard)}: row {row}", found, f"Expected is {key}. {mend}")
        return read_sample(self.store, shard, index, row)


class Joined:
    """The source ``joined``: samples with image, spectrum, inverse variance (where the spectra have it) and metadata.

    Of a metadata name that both datasets have the spectrum's value counts; if the image's differs it is kept as
    ``image_NAME``. ``image_key``, ``spectrum_key`` and ``separation_arcsec`` are added.

    Args:
        images: URL of the dataset of catalogue A.
        spectra: URL of the dataset of catalogue B.
        match: path or URL of the match table.
        key_of: whose key the pair has; DESI's TARGETID is that of the spectrum.

    Raises:
        DataError: a dataset or the table is not there, a dataset lacks what is taken from it, or the table is none of
            two datasets.
        CredentialsError, StorageError
    """

    name = "joined"

    def __init__(self, images: str, spectra: str, match: str, key_of: KeyOf = "spectrum") -> None:
        self._urls = (images, spectra)
        self._match_url, self._key_of = match, key_of
        image_manifest, spectrum_manifest = (dataset.manifest for dataset in self._datasets)
        self.image: ImageLayout | None = image_manifest.image
        self.spectrum: SpectrumLayout | None = spectrum_manifest.spectrum
        self.ivar = spectrum_manifest.ivar
        for url, member, layout in ((images, "image", self.image), (spectra, "spectrum", self.spectrum)):
            if layout is None:
                raise DataError(
                    f"{url}: {member}", "absent", "Match images as catalogue A with spectra as B, and give both so."
                )
        self._rows = len(self._match)
        if self._rows == 0:
            raise DataError(match, "no pairs", "Nothing matched: check radius, epochs and columns of the match.")
        self._described = {
            name: value for name, value in self._match.description.items() if isinstance(value, str | int | float)
        }

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--images", required=True, metavar="URL", help="dataset of catalogue A of the match")
        parser.add_argument("--spectra", required=True, metavar="URL", help="dataset of catalogue B of the match")
        parser.add_argument("--match", required=True, metavar="M.parquet", help="from `astroclip shards match`")
        parser.add_argument(
            "--key", choices=("spectrum", "image"), default="spectrum", help="whose key a pair has (default spectrum)"
        )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(args.images, args.spectra, args.match, args.key)

    def __reduce__(self) -> tuple[type[Joined], tuple[str, str, str, KeyOf]]:
        # Open files, caches and threads' locks stay with the process that has them.
        return type(self), (*self._urls, self._match_url, self._key_of)

    def describe(self) -> dict[str, str | int | float | bool | None]:
        images, spectra = (dataset.manifest for dataset in self._datasets)
        return {
            "images": str(images.source.get("kind")),
            "images_samples": sum(images.counts.values()),
            "spectra": str(spectra.source.get("kind")),
            "spectra_samples": sum(spectra.counts.values()),
            "key": self._key_of,
            **{f"match_{name}": value for name, value in self._described.items() if not name.startswith("dataset_")},
        }

    @property
    def partitions(self) -> int:
        return -(-self._rows // PARTITION_ROWS)

    def keys(self, partition: int) -> Sequence[str]:
        column = "key_b" if self._key_of == "spectrum" else "key_a"
        return self._block(partition, (column,)).column(column).to_pylist()

    def read(self, partition: int, rows: Sequence[int]) -> Iterator[Sample | DataError]:
        table = self._block(partition, _COLUMNS)
        pairs = [
            _Pair(*row.values()) for row in table.take(pa.array(rows, pa.int64())).select(list(_COLUMNS)).to_pylist()
        ]
        with ThreadPoolExecutor(_THREADS, "joined") as pool:
            ahead: deque[Future[Sample | DataError]] = deque()
            try:
                for pair in pairs:
                    ahead.append(pool.submit(self._read, pair))
                    if len(ahead) >= 2 * _THREADS:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for task in ahead:
                    task.cancel()

    @cached_property
    def _datasets(self) -> tuple[_OpenDataset, _OpenDataset]:
        images, spectra = (_OpenDataset(url) for url in self._urls)
        return images, spectra

    @cached_property
    def _match(self) -> MatchTable:
        return MatchTable(self._match_url)

    def _block(self, partition: int, columns: Sequence[str]) -> pa.Table:
        start = partition * PARTITION_ROWS
        return self._match.read(start, min(start + PARTITION_ROWS, self._rows), columns)

    def _read(self, pair: _Pair) -> Sample | DataError:
        key = pair.key_b if self._key_of == "spectrum" else pair.key_a
        try:
            if None in (pair.shard_a, pair.row_a, pair.shard_b, pair.row_b):
                raise DataError(
                    f"{self._match_url}: {key}", "no place in a dataset", "Match catalogues of datasets, not tables."
                )
            image = self._datasets[0].read(pair.shard_a, pair.row_a, pair.key_a)
            spectrum = self._datasets[1].read(pair.shard_b, pair.row_b, pair.key_b)
        except DataError as error:
            return error
        for sample, member in ((image, "image"), (spectrum, "spectrum")):
            if getattr(sample, member) is None:
                return DataError(f"sample {sample.key}: {member}", "absent", "Leave this pair out of the match.")
        return Sample(key, image.image, spectrum.spectrum, spectrum.ivar, _merge(image, spectrum, pair))


def _merge(image: Sample, spectrum: Sample, pair: _Pair) -> dict[str, Any]:
    merged = {**image.metadata, **spectrum.metadata}
    for name, value in image.metadata.items():
        if merged[name] != value:
            kept = f"image_{name}"
            while kept in merged:
                kept = f"image_{kept}"
            merged[kept] = value
    merged |= {"image_key": image.key, "spectrum_key": spectrum.key}
    if pair.separation_arcsec is not None:
        merged["separation_arcsec"] = pair.separation_arcsec
    return merged
