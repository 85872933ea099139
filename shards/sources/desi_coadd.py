"""DESI coadds (``coadd-*.fits``: arms B, R, Z of each target) with redshifts from redrock tables.

Format: https://desidatamodel.readthedocs.io, ``coadd-SURVEY-PROGRAM-HEALPIX.fits`` and ``redrock-*.fits``. The three
arms share DESI's wavelength grid, so coadding them onto it interpolates nothing; in the overlaps they are averaged.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from astropy.io import fits

from astroclip_dist.data.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import DataError
from shards.sample import Sample
from shards.sources.fits_file import hdu_data, open_fits, row_scalars, table_column
from shards.sources.redrock import read_redshifts
from shards.spectra_grid import Arm, coadd

_ARMS = ("B", "R", "Z")
# Metadata and their FIBERMAP columns: those every file has, and those that targets from other catalogues lack.
_REQUIRED = {"ra": "TARGET_RA", "dec": "TARGET_DEC", "ebv": "EBV"}
_OPTIONAL = {
    "release": "RELEASE",
    "brickid": "BRICKID",
    "brick_objid": "BRICK_OBJID",
    "morphtype": "MORPHTYPE",
    **{f"flux_{band}": f"FLUX_{band.upper()}" for band in ("g", "r", "z", "w1", "w2")},
    **{f"fiberflux_{band}": f"FIBERFLUX_{band.upper()}" for band in ("g", "r", "z")},
    "exposure_s": "COADD_EXPTIME",
}


class DesiCoadd:
    """The source ``desi-coadd``: one sample for each good target, with spectrum and inverse variance, without image.

    Sky fibres, stuck positioners and fibres with any COADD_FIBERSTATUS bit are no galaxies and are left out (their
    number is in the manifest); pixels with a MASK bit get inverse variance 0.

    Args:
        files: coadds, read in this order.
        redrock: tables with a redshift for every target; without them samples have none.
    """

    name = "desi-coadd"
    image: ImageLayout | None = None
    spectrum: SpectrumLayout | None = SpectrumLayout()
    ivar = True

    def __init__(self, files: list[Path], redrock: list[Path]) -> None:
        self._files = files
        self._redrock = redrock
        self._redshifts = read_redshifts(redrock)
        self._rows = 0
        self._good: list[np.ndarray] = []
        for path in files:
            with open_fits(path) as hdus:
                fibermap = hdu_data(hdus, path, "FIBERMAP")
                self._rows += len(fibermap)
                self._good.append(_good_rows(fibermap, path))

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("files", metavar="COADD.fits", nargs="+", type=Path)
        parser.add_argument(
            "--redrock",
            metavar="FILE",
            nargs="+",
            action="extend",
            default=[],
            type=Path,
            help="redrock tables of the same targets; give this option after OUT, or once for each file",
        )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(args.files, args.redrock)

    def describe(self) -> dict[str, str | int | float | bool | None]:
        return {
            "files": len(self._files),
            "first_file": self._files[0].name,
            "last_file": self._files[-1].name,
            "redrock_files": len(self._redrock),
            "selection": "OBJTYPE = TGT and COADD_FIBERSTATUS = 0",
            "rows": self._rows,
            "selected": len(self),
        }

    def __len__(self) -> int:
        return sum(map(len, self._good))

    def samples(self) -> Iterator[Sample]:
        for path, rows in zip(self._files, self._good, strict=True):
            if len(rows):
                yield from self._read(path, rows)

    def _read(self, path: Path, rows: np.ndarray) -> Iterator[Sample]:
        assert self.spectrum is not None
        with open_fits(path) as hdus:
            fibermap = hdu_data(hdus, path, "FIBERMAP")[rows]
            arms = [_read_arm(hdus, path, arm, rows) for arm in _ARMS]
        flux, ivar = coadd(arms, self.spectrum, str(path))
        for place, target in enumerate(table_column(fibermap, path, "FIBERMAP", "TARGETID").tolist()):
            if not ivar[place].any():
                raise DataError(
                    f"{path} target {target}",
                    "every pixel is masked",
                    "Drop it from the file, or set its fibre status.",
                )
            metadata: dict[str, Any] = {"targetid": target}
            metadata |= row_scalars(fibermap, path, "FIBERMAP", _REQUIRED, place)
            present = {field: column for field, column in _OPTIONAL.items() if column in (fibermap.dtype.names or ())}
            metadata |= row_scalars(fibermap, path, "FIBERMAP", present, place)
            if self._redrock:
                if target not in self._redshifts:
                    raise DataError(
                        f"{path} target {target}", "not in the redrock tables", "Give the table of each coadd."
                    )
                metadata |= self._redshifts[target]
            yield Sample(str(target), spectrum=flux[place], ivar=ivar[place], metadata=metadata)


def _good_rows(fibermap: np.ndarray, path: Path) -> np.ndarray:
    names = fibermap.dtype.names or ()
    if "COADD_FIBERSTATUS" not in names and "FIBERSTATUS" in names:
        raise DataError(f"{path} HDU FIBERMAP", "single exposures, not a coadd", "Give the coadd-*.fits file instead.")
    status = table_column(fibermap, path, "FIBERMAP", "COADD_FIBERSTATUS")
    kind = np.char.strip(table_column(fibermap, path, "FIBERMAP", "OBJTYPE"))
    return np.flatnonzero((status == 0) & (kind == "TGT"))


def _read_arm(hdus: fits.HDUList, path: Path, arm: str, rows: np.ndarray) -> Arm:
    flux, ivar, mask = (hdu_data(hdus, path, f"{arm}_{kind}") for kind in ("FLUX", "IVAR", "MASK"))
    wavelength = hdu_data(hdus, path, f"{arm}_WAVELENGTH")
    for kind, data in (("FLUX", flux), ("IVAR", ivar), ("MASK", mask)):
        if data.ndim != 2 or data.shape != (len(hdus["FIBERMAP"].data), len(wavelength)):
            raise DataError(
                f"{path} HDU {arm}_{kind}", f"shape {data.shape}", "It is (targets, wavelengths) in a coadd file."
            )
    return Arm(f"arm {arm}", wavelength, flux[rows], np.where(mask[rows] == 0, ivar[rows], 0.0))
