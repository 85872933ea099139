"""DESI commissioning spectra as the DESI High project publishes them: one table a file, one column a target.

Format (https://github.com/michaelJwilson/desihigh): WAVELENGTH with the pixels of the three arms sorted together, so
that those of an overlap come twice, and TARGET<TARGETID> columns with flux in 1e-17 erg/s/cm2/A. No inverse variances.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import DataError
from shards.grids.spectra_grid import Arm, coadd
from shards.sample import Sample
from shards.sources.fits_file import hdu_data, open_fits, table_column
from shards.sources.redrock import read_redshifts

_TARGET = re.compile(r"TARGET(\d+)")
_CATALOGUE = {
    "ra": "TARGET_RA",
    "dec": "TARGET_DEC",
    **{f"flux_{band}": f"FLUX_{band.upper()}" for band in ("g", "r", "z")},
}


class DesiHigh:
    """The source ``desi-high``: one sample for each target column, with spectrum, without inverse variance or image.

    A partition is a file.

    Args:
        files: spectra, read in this order.
        zbest: tables with redshift, position and flux of every target.
    """

    name = "desi-high"
    image: ImageLayout | None = None
    spectrum: SpectrumLayout | None = SpectrumLayout()
    ivar = False

    def __init__(self, files: list[Path], zbest: list[Path]) -> None:
        self._files = files
        self._catalogue = read_redshifts(zbest, _CATALOGUE)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("files", metavar="COADD.fits", nargs="+", type=Path)
        parser.add_argument(
            "--zbest",
            metavar="FILE",
            nargs="+",
            action="extend",
            required=True,
            type=Path,
            help="tables of the same targets; give this option after OUT, or once for each file",
        )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(args.files, args.zbest)

    def describe(self) -> dict[str, str | int | float | bool | None]:
        return {
            "files": len(self._files),
            "first_file": self._files[0].name,
            "last_file": self._files[-1].name,
        }

    @property
    def partitions(self) -> int:
        return len(self._files)

    def keys(self, partition: int) -> list[str]:
        path = self._files[partition]
        with open_fits(path) as hdus:
            return list(map(str, _targets(hdu_data(hdus, path, 1), path)))

    def read(self, partition: int, rows: Sequence[int]) -> Iterator[Sample | DataError]:
        path = self._files[partition]
        with open_fits(path) as hdus:
            table = hdu_data(hdus, path, 1)
        wavelength, pixel = np.unique(table_column(table, path, "1", "WAVELENGTH").round(3), return_inverse=True)
        weight = np.bincount(pixel).astype(np.float64)
        targets = _targets(table, path)
        for target in (targets[row] for row in rows):
            flux = np.bincount(pixel, table_column(table, path, "1", f"TARGET{target}")) / weight
            arm = Arm(f"TARGET{target}", wavelength, flux[None], weight[None])
            yield self._sample(target, arm, path)

    def _sample(self, target: int, arm: Arm, path: Path) -> Sample | DataError:
        if target not in self._catalogue:
            return DataError(f"{path} target {target}", "not in the zbest tables", "Give the table of each file.")
        assert self.spectrum is not None
        try:
            spectrum, _ = coadd([arm], self.spectrum, str(path))
        except DataError as error:
            return error
        return Sample(str(target), spectrum=spectrum[0], metadata={"targetid": target, **self._catalogue[target]})


def _targets(table: np.ndarray, path: Path) -> list[int]:
    names = table.dtype.names or ()
    found = [int(match.group(1)) for match in map(_TARGET.fullmatch, names) if match]
    if "WAVELENGTH" not in names or not found:
        raise DataError(
            f"{path} HDU 1", "no WAVELENGTH and TARGET columns", "Use the source desi-coadd for coadds of the pipeline."
        )
    return found
