"""AstroCLIP's pairs as ``datasets`` exports them: folders of ``save_to_disk`` (Arrow streams), or Parquet files.

Both hold the columns of ``dataset.py`` of https://github.com/PolymathicAI/AstroCLIP (version 1.1.5): ``image``
Array3D (152, 152, 3), ``spectrum`` Array2D (7781, 1), ``redshift``, ``targetid``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import DataError
from shards.sample import Sample
from shards.sources.arrow_file import ArrowFile, find_arrow_files, nested_values
from shards.sources.astroclip_pairs import PairFormat

_COLUMNS = ("image", "spectrum", "redshift", "targetid")


class AstroclipArrow:
    """The source ``astroclip-arrow``: one sample a row, image and spectrum without inverse variances.

    A file is a partition.

    Args:
        inputs: folders of ``save_to_disk`` (a DatasetDict or one Dataset), folders with Parquet files, or files, read
            in this order.
        pairs: how the images lie and are stored.

    Raises:
        DataError: an input that is none of these.
    """

    name = "astroclip-arrow"
    ivar = False

    def __init__(self, inputs: list[Path], pairs: PairFormat) -> None:
        self.image: ImageLayout | None = pairs.image
        self.spectrum: SpectrumLayout | None = pairs.spectrum
        self._pairs = pairs
        self._files: list[ArrowFile] = [file for path in inputs for file in find_arrow_files(path)]

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "inputs", metavar="FOLDER", nargs="+", type=Path, help="of save_to_disk or Parquet; or files"
        )
        PairFormat.add_arguments(parser)

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(args.inputs, PairFormat.from_arguments(args))

    def describe(self) -> dict[str, str | int | float | bool | None]:
        return {
            "files": len(self._files),
            "first_file": self._files[0].path.name,
            "last_file": self._files[-1].path.name,
            "image_axes": self._pairs.image_axes,
        }

    @property
    def partitions(self) -> int:
        return len(self._files)

    def keys(self, partition: int) -> Sequence[str]:
        keys: list[str] = []
        file = self._files[partition]
        for _, batch in file.batches(["targetid"], None):
            keys += map(str, _targets(batch, file))
        return keys

    def read(self, partition: int, rows: Sequence[int]) -> Iterator[Sample | DataError]:
        file = self._files[partition]
        wanted = np.asarray(rows, dtype=np.int64)
        done = 0
        for start, batch in file.batches(_COLUMNS, wanted):
            targets = _targets(batch, file)
            end = int(np.searchsorted(wanted, start + batch.num_rows))
            for row in wanted[done:end].tolist():
                try:
                    yield self._sample(
                        targets[row - start], batch.slice(row - start, 1), file, f"{file.path} row {row}"
                    )
                except DataError as error:
                    yield error
            done = end
        if done < len(wanted):
            raise DataError(str(file.path), f"no row {wanted[done]}", "The file changed since it was planned.")

    def _sample(self, target: int, row: pa.RecordBatch, file: ArrowFile, where: str) -> Sample:
        image, spectrum = (nested_values(row.column(name), f"{where}: {name}") for name in ("image", "spectrum"))
        redshift = row.column("redshift")[0].as_py()
        if not isinstance(redshift, float):
            raise DataError(f"{where}: redshift", redshift, "It is a number in floating point.")
        return self._pairs.sample(target, image, spectrum, redshift, file.split, where)


def _targets(batch: pa.RecordBatch, file: ArrowFile) -> list[int]:
    column = batch.column("targetid")
    if not pa.types.is_integer(column.type) or column.null_count:
        raise DataError(
            f"{file.path} column targetid", f"{column.type}, {column.null_count} absent", "Every row has an integer."
        )
    return column.to_pylist()
