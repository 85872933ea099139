"""Legacy Survey FITS cut-outs of g, r, z, one file a galaxy (https://www.legacysurvey.org/viewer/cutout.fits)."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales

from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import DataError
from shards.grids.image_grid import resample_image
from shards.sample import Sample
from shards.sources.fits_file import hdu_data, open_fits

_SIZE = 152
_BANDS = "grz"
# No telescope measures exactly zero in so many pixels: they are where the survey has no data in a band.
_ZEROS_ALLOWED = 0.001


class LegacyFits:
    """The source ``legacy-fits``: one sample a file, an image without spectrum. A partition is a file.

    Values of a cut-out at any pixel scale are flux per native pixel of 0.262 arcsec (the cut-out service interpolates
    the coadd), so they are averaged onto the layout's pixels without a factor; a cut-out at 0.262 arcsec is cropped.

    Args:
        files: cut-outs, read in this order; the file's name without suffix becomes the key.
        size: of the images, in pixels of 0.262 arcsec.
        bad_pixels: "refuse" stops at a field with NaN or without data; "zero" puts 0 there and keeps the fraction in
            the sample's ``image_bad_fraction``.
    """

    name = "legacy-fits"
    spectrum: SpectrumLayout | None = None
    ivar = False

    def __init__(self, files: list[Path], size: int = _SIZE, bad_pixels: str = "refuse") -> None:
        self.image: ImageLayout | None = ImageLayout(size=size)
        self._files = files
        self._bad_pixels = bad_pixels

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("files", metavar="CUTOUT.fits", nargs="+", type=Path)
        parser.add_argument("--size", type=int, default=_SIZE, help="image size in px of 0.262 arcsec (default 152)")
        parser.add_argument(
            "--bad-pixels",
            choices=("refuse", "zero"),
            default="refuse",
            help="at NaN or missing data in a band: stop (default), or put 0 there",
        )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(args.files, args.size, args.bad_pixels)

    def describe(self) -> dict[str, str | int | float | bool | None]:
        return {
            "files": len(self._files),
            "first_file": self._files[0].name,
            "last_file": self._files[-1].name,
            "bad_pixels": self._bad_pixels,
        }

    @property
    def partitions(self) -> int:
        return len(self._files)

    def keys(self, partition: int) -> list[str]:
        return [_key(self._files[partition])]

    def read(self, partition: int, rows: Sequence[int]) -> Iterator[Sample | DataError]:
        for _ in rows:
            try:
                yield self._read(self._files[partition])
            except DataError as error:
                yield error

    def _read(self, path: Path) -> Sample:
        assert self.image is not None
        with open_fits(path) as hdus:
            header, flux = hdus[0].header, hdu_data(hdus, path, 0)
        _check_bands(header, flux, path)
        ra, dec, pixel_scale = _sky(header, flux.shape, path)
        bad = ~np.isfinite(flux)
        empty = flux == 0
        for band in range(len(_BANDS)):
            if empty[band].mean() > _ZEROS_ALLOWED:
                bad[band] |= empty[band]
        image = resample_image(np.where(bad, 0.0, flux), pixel_scale, self.image, str(path))
        bad_fraction = resample_image(bad.astype(np.float32), pixel_scale, self.image, str(path))
        if bad_fraction.any() and self._bad_pixels == "refuse":
            found = ", ".join(
                f"{band} {share:.1%}" for band, share in zip(_BANDS, bad_fraction.mean(axis=(1, 2)), strict=True)
            )
            raise DataError(
                f"{path}: pixels", f"NaN or no data in {found}", "Leave the file out, or use --bad-pixels zero."
            )
        metadata = {
            "ra": ra,
            "dec": dec,
            "image_pixel_scale_arcsec": pixel_scale,
            "image_bad_fraction": float(bad_fraction.mean()),
            **{
                field: str(header[card]).strip()
                for field, card in (("survey", "SURVEY"), ("survey_version", "VERSION"))
                if card in header
            },
        }
        return Sample(_key(path), image=image, metadata=metadata)


def _key(path: Path) -> str:
    """The file's name with every other character than those of a key replaced; dots end a key in the tar."""
    return re.sub(r"[^A-Za-z0-9_+-]+", "_", path.stem if path.suffix != ".fz" else Path(path.stem).stem)


def _check_bands(header: fits.Header, flux: np.ndarray, path: Path) -> None:
    bands = str(header.get("BANDS", "")).strip()
    if bands != _BANDS:
        raise DataError(f"{path} HDU 0: BANDS", repr(bands), "Cut-outs with bands 'grz', in this order, can be used.")
    if flux.ndim != 3 or len(flux) != len(_BANDS) or flux.dtype.kind != "f":
        raise DataError(
            f"{path} HDU 0", f"{flux.dtype} {flux.shape}", "A cut-out is (3, height, width) in floating point."
        )


def _sky(header: fits.Header, shape: tuple[int, ...], path: Path) -> tuple[float, float, float]:
    """Right ascension and declination of the centre (deg) and the pixel scale (arcsec)."""
    wcs = WCS(header, naxis=2)
    scales = proj_plane_pixel_scales(wcs) * 3600
    if not wcs.has_celestial or not np.isclose(scales[0], scales[1], rtol=1e-3):
        raise DataError(
            f"{path} HDU 0: WCS", f"no sky coordinates with square pixels ({scales})", "Use the survey's cut-outs."
        )
    ra, dec = wcs.wcs_pix2world((shape[2] - 1) / 2, (shape[1] - 1) / 2, 0)
    return float(ra), float(dec), float(scales[0])
