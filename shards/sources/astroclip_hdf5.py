"""AstroCLIP's paired file (``astroclip_desi.1.1.5.h5``): Legacy Survey images with DESI spectra in ten groups."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import DataError
from shards.sample import Sample
from shards.sources.astroclip_pairs import TRAIN_SHARE, PairFormat
from shards.sources.hdf5_file import hdf5_dataset, hdf5_groups, open_hdf5, read_rows, row_blocks


class AstroclipHdf5:
    """The source ``astroclip-hdf5``: one sample a row, image and spectrum without inverse variances.

    A group is a partition.

    Args:
        path: the file: groups "0" to "9" with ``images`` (n, 152, 152, 3), ``spectra`` (n, 7781, 1), ``redshifts``
            (n,) and ``targetids`` (n,).
        pairs: how the images lie and are stored.

    Raises:
        DataError: the file cannot be opened, or has no groups.
    """

    name = "astroclip-hdf5"
    ivar = False

    def __init__(self, path: Path, pairs: PairFormat) -> None:
        self.image: ImageLayout | None = pairs.image
        self.spectrum: SpectrumLayout | None = pairs.spectrum
        self._pairs = pairs
        self._path = path
        with open_hdf5(path) as file:
            self._groups = hdf5_groups(file)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("path", metavar="FILE.h5", type=Path)
        PairFormat.add_arguments(parser)

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(args.path, PairFormat.from_arguments(args))

    def describe(self) -> dict[str, str | int | float | bool | None]:
        return {"file": self._path.name, "groups": len(self._groups), "image_axes": self._pairs.image_axes}

    @property
    def partitions(self) -> int:
        return len(self._groups)

    def keys(self, partition: int) -> Sequence[str]:
        with open_hdf5(self._path) as file:
            targets = hdf5_dataset(file, f"{self._groups[partition]}/targetids", (None,), "iu")
            return list(map(str, read_rows(targets, range(len(targets))).tolist()))

    def read(self, partition: int, rows: Sequence[int]) -> Iterator[Sample | DataError]:
        group = self._groups[partition]
        where = f"{self._path} group {group}"
        with open_hdf5(self._path) as file:
            targets = hdf5_dataset(file, f"{group}/targetids", (None,), "iu")
            pairs = len(targets)
            redshifts = hdf5_dataset(file, f"{group}/redshifts", (pairs,), "f")
            spectra = hdf5_dataset(file, f"{group}/spectra", (pairs, self._pairs.spectrum.size, 1), "f")
            images = hdf5_dataset(file, f"{group}/images", (pairs, None, None, None), "f")
            self._pairs.transposition(images.shape[1:], where)
            for block in row_blocks(images, rows):
                columns = [read_rows(dataset, block) for dataset in (targets, images, spectra, redshifts)]
                for row, target, image, spectrum, redshift in zip(block.tolist(), *columns, strict=True):
                    split = "train" if row < int(TRAIN_SHARE * pairs) else "test"
                    try:
                        yield self._pairs.sample(
                            int(target), image, spectrum, float(redshift), split, f"{where} row {row}"
                        )
                    except DataError as error:
                        yield error
