"""DESI coadds (``coadd-*.fits``: arms B, R, Z of each target) with redshifts from redrock tables.

Format: https://desidatamodel.readthedocs.io, ``coadd-SURVEY-PROGRAM-HEALPIX.fits`` and ``redrock-*.fits``. The three
arms share DESI's wavelength grid, so coadding them onto it interpolates nothing; in the overlaps they are averaged.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from astropy.io import fits

from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import DataError
from shards.grids.spectra_grid import Arm, coadd
from shards.sample import Sample
from shards.sources.fits_file import hdu_data, open_fits, row_scalars, table_column
from shards.sources.redrock import read_redshifts

SELECTION = "OBJTYPE = TGT and COADD_FIBERSTATUS = 0"
_ARMS = ("B", "R", "Z")
# Metadata and their FIBERMAP columns: those every file has, and those that targets from other catalogues lack.
_REQUIRED = {"targetid": "TARGETID", "ra": "TARGET_RA", "dec": "TARGET_DEC", "ebv": "EBV"}
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

    Sky fibres, stuck positioners and fibres with any COADD_FIBERSTATUS bit are no galaxies and are left out; pixels
    with a MASK bit get inverse variance 0. A partition is a file.

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
            "selection": SELECTION,
        }

    @property
    def partitions(self) -> int:
        return len(self._files)

    def keys(self, partition: int) -> list[str]:
        return [str(target) for target in read_good_targets(self._files[partition])[1]]

    def read(self, partition: int, rows: Sequence[int]) -> Iterator[Sample | DataError]:
        path = self._files[partition]
        for sample in read_coadd(path, read_good_targets(path)[0][list(rows)]):
            yield self._with_redshift(sample, path) if isinstance(sample, Sample) and self._redrock else sample

    def _with_redshift(self, sample: Sample, path: Path) -> Sample | DataError:
        redshift = self._redshifts.get(sample.metadata["targetid"])
        if redshift is None:
            return DataError(
                f"{path} target {sample.key}", "not in the redrock tables", "Give the table of each coadd."
            )
        sample.metadata |= redshift
        return sample


def read_good_targets(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a coadd's FIBERMAP that are good targets, and their TARGETIDs; reads no spectra.

    Returns:
        (targets,) int64 each.

    Raises:
        DataError: a file that is damaged, of another format, or of single exposures.
    """
    with open_fits(path) as hdus:
        fibermap = hdu_data(hdus, path, "FIBERMAP")
    names = fibermap.dtype.names or ()
    if "COADD_FIBERSTATUS" not in names and "FIBERSTATUS" in names:
        raise DataError(f"{path} HDU FIBERMAP", "single exposures, not a coadd", "Give the coadd-*.fits file instead.")
    status = table_column(fibermap, path, "FIBERMAP", "COADD_FIBERSTATUS")
    kind = np.char.strip(table_column(fibermap, path, "FIBERMAP", "OBJTYPE"))
    rows = np.flatnonzero((status == 0) & (kind == "TGT"))
    return rows, table_column(fibermap, path, "FIBERMAP", "TARGETID")[rows]


def read_coadd(path: Path, rows: np.ndarray) -> Iterator[Sample | DataError]:
    """Spectra of some rows of a coadd file on DESI's grid, with what FIBERMAP says of them, keyed by TARGETID.

    Args:
        rows: (targets,) places in FIBERMAP.

    Returns:
        For each row, in order, its sample, or why its spectrum cannot be used.

    Raises:
        DataError: a file that is damaged or of another format.
    """
    with open_fits(path) as hdus:
        fibermap = hdu_data(hdus, path, "FIBERMAP")[rows]
        arms = [_read_arm(hdus, path, arm, rows) for arm in _ARMS]
    present = {field: column for field, column in _OPTIONAL.items() if column in (fibermap.dtype.names or ())}
    for place, spectrum in enumerate(_coadd_each(arms, path)):
        metadata: dict[str, Any] = row_scalars(fibermap, path, "FIBERMAP", {**_REQUIRED, **present}, place)
        target = metadata["targetid"]
        if isinstance(spectrum, DataError):
            yield DataError(f"{path} target {target}: {spectrum.field}", spectrum.value, spectrum.mend)
        elif not spectrum[1].any():
            yield DataError(
                f"{path} target {target}", "every pixel is masked", "Drop it from the file, or set its fibre status."
            )
        else:
            yield Sample(str(target), spectrum=spectrum[0], ivar=spectrum[1], metadata=metadata)


def _coadd_each(arms: list[Arm], path: Path) -> Iterator[tuple[np.ndarray, np.ndarray] | DataError]:
    """Flux and inverse variance of each spectrum; all at once, or one by one where some cannot be used."""
    layout = SpectrumLayout()
    try:
        together = coadd(arms, layout, path.name)
    except DataError:
        for row in range(len(arms[0].flux)):
            alone = [arm._replace(flux=arm.flux[row : row + 1], ivar=arm.ivar[row : row + 1]) for arm in arms]
            try:
                flux, ivar = coadd(alone, layout, path.name)
            except DataError as error:
                yield error
            else:
                yield flux[0], ivar[0]
    else:
        yield from zip(*together, strict=True)


def _read_arm(hdus: fits.HDUList, path: Path, arm: str, rows: np.ndarray) -> Arm:
    flux, ivar, mask = (hdu_data(hdus, path, f"{arm}_{kind}") for kind in ("FLUX", "IVAR", "MASK"))
    wavelength = hdu_data(hdus, path, f"{arm}_WAVELENGTH")
    for kind, data in (("FLUX", flux), ("IVAR", ivar), ("MASK", mask)):
        if data.ndim != 2 or data.shape != (len(hdus["FIBERMAP"].data), len(wavelength)):
            raise DataError(
                f"{path} HDU {arm}_{kind}", f"shape {data.shape}", "It is (targets, wavelengths) in a coadd file."
            )
    return Arm(f"arm {arm}", wavelength, flux[rows], np.where(mask[rows] == 0, ivar[rows], 0.0))
