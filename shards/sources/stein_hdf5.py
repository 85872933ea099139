"""The 76,446,849 Legacy Survey images of Stein et al.: HDF5 files of a million galaxies, with catalogue columns.

Format: https://github.com/georgestein/ssl-legacysurvey (Stein et al. 2021, arXiv:2110.13151); the columns are those of
the DR9 sweep catalogues, https://www.legacysurvey.org/dr9/catalogs/.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import DataError
from shards.grids.stored_image import add_dtype_argument, stored_image
from shards.sample import Sample
from shards.sources.hdf5_file import hdf5_dataset, hdf5_shape, open_hdf5, plain_values, read_rows, row_blocks

_IDENTIFIERS = ("release", "brickid", "objid")
_POSITION = ("ra", "dec")
_REDSHIFTS = (
    "z_spec",
    "z_training",
    *(f"z_phot_{moment}" for moment in ("mean", "median", "std", "l68", "u68", "l95", "u95")),
)
# One value a galaxy or, with a second axis of three, one for each of g, r, z.
_OPTIONAL = (
    "ebv",
    *("flux", "fiberflux", "fracin", "nobs", "psfdepth", "psfsize", "transmission"),
    *("inds", "maskbits", "source_type"),
    *_REDSHIFTS,
)
_UNKNOWN_REDSHIFT = -99.0

log = logging.getLogger(__name__)


class SteinHdf5:
    """The source ``stein``: one sample a row, an image without spectrum; a file is a partition.

    The key is ``release-brickid-objid`` of the row's own columns: ``inds`` skips numbers and repeats some in the
    southern files, so the place of a galaxy does not follow from it. Columns that a file lacks are absent.

    Args:
        files: in this order.
        dtype: of the images in the dataset.
    """

    name = "stein"
    spectrum: SpectrumLayout | None = None
    ivar = False

    def __init__(self, files: list[Path], dtype: str = "float32") -> None:
        self._layout = ImageLayout.model_validate({"dtype": dtype})
        self.image: ImageLayout | None = self._layout
        self._files = files

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("files", metavar="FILE.h5", nargs="+", type=Path)
        add_dtype_argument(parser)

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(args.files, args.dtype)

    def describe(self) -> dict[str, str | int | float | bool | None]:
        return {
            "files": len(self._files),
            "first_file": self._files[0].name,
            "last_file": self._files[-1].name,
        }

    @property
    def partitions(self) -> int:
        return len(self._files)

    def keys(self, partition: int) -> Sequence[str]:
        with open_hdf5(self._files[partition]) as file:
            galaxies = len(self._images(file))
            identifiers = [
                read_rows(hdf5_dataset(file, name, (galaxies,), "iu"), range(galaxies)) for name in _IDENTIFIERS
            ]
        return [_key(row) for row in zip(*(column.tolist() for column in identifiers), strict=True)]

    def read(self, partition: int, rows: Sequence[int]) -> Iterator[Sample | DataError]:
        path = self._files[partition]
        with open_hdf5(path) as file:
            images = self._images(file)
            columns = _columns(file, path, len(images))
            for block in row_blocks(images, rows):
                flux = read_rows(images, block)
                values = _named_values({name: read_rows(column, block) for name, column in columns.items()})
                for place, row in enumerate(block.tolist()):
                    try:
                        yield self._sample(flux[place], plain_values(values, place), f"{path} row {row}")
                    except DataError as error:
                        yield error

    def _images(self, file: h5py.File) -> h5py.Dataset:
        return hdf5_dataset(file, "images", (None, *self._layout.shape), "f")

    def _sample(self, flux: np.ndarray, values: dict[str, Any], where: str) -> Sample:
        key = _key(tuple(values[name] for name in _IDENTIFIERS))
        where = f"{where} ({key})"
        lacking = [name for name in _POSITION if name not in values]
        if lacking:
            raise DataError(f"{where}: {', '.join(lacking)}", "NaN", "Every galaxy has a position: the row is damaged.")
        metadata = {
            name: value for name, value in values.items() if name not in _REDSHIFTS or value != _UNKNOWN_REDSHIFT
        }
        if "z_spec" in metadata:
            # Under the name that every source gives to a spectroscopic redshift.
            metadata["redshift"] = metadata["z_spec"]
        return Sample(key, image=stored_image(flux, self._layout, where), metadata=metadata)


def _key(identifiers: tuple[int, ...]) -> str:
    return "-".join(map(str, identifiers))


def _columns(file: h5py.File, path: Path, galaxies: int) -> dict[str, h5py.Dataset]:
    """The columns to read, checked; one of another length than the images cannot be told which row is whose."""
    columns = {name: hdf5_dataset(file, name, (galaxies,), "iu") for name in _IDENTIFIERS}
    columns |= {name: hdf5_dataset(file, name, (galaxies,), "f") for name in _POSITION}
    for name in _OPTIONAL:
        shape = hdf5_shape(file, name)
        if shape is None:
            continue
        if shape and shape[0] != galaxies:
            # The published files have such columns here and there, and their own loader leaves them out.
            log.warning("%s dataset %s: %d rows for %d images; left out", path, name, shape[0], galaxies)
            continue
        per_galaxy = (galaxies, 3) if len(shape) == 2 else (galaxies,)
        columns[name] = hdf5_dataset(file, name, per_galaxy, "S" if name == "source_type" else "fiub")
    return columns


def _named_values(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each column (rows,); one with three bands becomes ``NAME_g``, ``NAME_r``, ``NAME_z``."""
    named = {}
    for name, column in columns.items():
        if column.ndim == 1:
            named[name] = column
        else:
            named |= {f"{name}_{band}": column[:, place] for place, band in enumerate("grz")}
    return named
