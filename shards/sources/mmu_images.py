"""Multimodal Universe's Legacy Survey images: ``legacysurvey`` (DR10, 160 px of g, r, i, z) and ``ssl_legacysurvey``.

Published by scripts/legacysurvey and scripts/ssl_legacysurvey of MultimodalUniverse: cut-outs of the coadds in
nanomaggies a pixel of 0.262 arcsec, the first row southern, with the names of their bands.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from astroclip_dist.data.stored.manifest import ImageLayout
from astroclip_dist.errors import DataError
from shards.grids.image_grid import resample_image
from shards.grids.stored_image import add_dtype_argument, stored_image
from shards.sample import Sample
from shards.sources.mmu_file import Field, Form, Galaxy, read_identifiers
from shards.sources.mmu_source import MmuSource

_SIZE = 152
_SCALE_TOLERANCE = 0.002
_BAND = re.compile(r"(?:des-)?([a-z])", re.IGNORECASE)
# The published pictures of the release before named the pixels "array".
_PIXELS = {
    "flux": Field("image_array", (None, None, None), "f", "image", ("flux", "array")),
    "band": Field("image_band", (None,), "S", "image", ("band",)),
    "psf_fwhm": Field("image_psf_fwhm", (None,), "f", "image", ("psf_fwhm",), optional=True),
    "scale": Field("image_scale", (None,), "f", "image", ("scale",)),
}


class _MmuImages(MmuSource):
    """Images of the bands g, r, z about the middle of the published cut-outs; a galaxy without all three is refused.

    Args:
        inputs: files or folders.
        size: of the images, in pixels of 0.262 arcsec.
        dtype: of the images in the dataset.
    """

    def __init__(self, inputs: Sequence[Path], size: int = _SIZE, dtype: str = "float32") -> None:
        super().__init__(inputs)
        self._layout = ImageLayout.model_validate({"size": size, "dtype": dtype})
        self.image: ImageLayout | None = self._layout

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--size", type=int, default=_SIZE, help="image size in px of 0.262 arcsec (default 152)")
        add_dtype_argument(parser)

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(args.inputs, args.size, args.dtype)

    def _sample(self, key: str, galaxy: Galaxy, where: str) -> Sample:
        names, arrays = self._layout.bands, {name: np.asarray(array) for name, array in galaxy.arrays.items()}
        places = _find_bands(arrays["band"], names, where)
        bands = len(arrays["band"])
        if arrays["flux"].ndim != 3 or any(len(arrays[name]) != bands for name in arrays if name != "mask"):
            raise DataError(
                f"{where}: image", f"{arrays['flux'].shape} for {bands} bands", "It is (bands, height, width)."
            )
        _check_scale(arrays["scale"][places], self._layout, where)
        metadata = _catalogue(galaxy)
        if "psf_fwhm" in arrays:
            widths = arrays["psf_fwhm"][places]
            metadata |= {
                f"psf_fwhm_{band}": float(width) for band, width in zip(names, widths, strict=True) if width > 0
            }
        metadata |= self._quality(arrays, places, where)
        image = stored_image(self._middle(arrays["flux"][places], where), self._layout, where)
        return Sample(key, image=image, metadata=metadata)

    def _middle(self, pixels: np.ndarray, where: str) -> np.ndarray:
        """The central field of (bands, height, width), float32."""
        layout = ImageLayout(size=self._layout.size)
        return resample_image(pixels, layout.pixel_scale_arcsec, layout, where)

    def _quality(self, arrays: dict[str, np.ndarray], places: list[int], where: str) -> dict[str, float]:
        """Shares of the image that are flagged, or that no exposure covers."""
        return {}


class MmuLegacySurvey(_MmuImages):
    """The source ``mmu-legacysurvey``: Legacy Survey DR10 south to z = 21 mag; the key is BRICKNAME-OBJID."""

    name = "mmu-legacysurvey"
    form: ClassVar = Form(
        fields={
            **_PIXELS,
            "ivar": Field("image_ivar", (None, None, None), "f", "image", ("ivar",)),
            "mask": Field("image_mask", (None, None), "biu", "image", ("mask",)),
        },
        scalars={
            "ra": ("ra", "RA"),
            "dec": ("dec", "DEC"),
            "ebv": ("EBV",),
            "release": ("RELEASE",),
            "brickid": ("BRICKID",),
            "brick_objid": ("OBJID",),
            "morphtype": ("TYPE",),
            **{f"flux_{band}": (f"FLUX_{band.upper()}",) for band in ("g", "r", "i", "z", "w1", "w2")},
            "shape_r": ("SHAPE_R",),
            "shape_e1": ("SHAPE_E1",),
            "shape_e2": ("SHAPE_E2",),
        },
    )

    def _quality(self, arrays: dict[str, np.ndarray], places: list[int], where: str) -> dict[str, float]:
        ivar, mask = arrays["ivar"], arrays["mask"]
        if ivar.shape != arrays["flux"].shape or mask.shape[-2:] != ivar.shape[-2:]:
            raise DataError(
                f"{where}: ivar and mask", f"{ivar.shape} and {mask.shape}", "They are as large as the image."
            )
        empty = ~(ivar[places] > 0)
        for band, pixels in zip(self._layout.bands, empty, strict=True):
            if pixels.all():
                raise DataError(
                    f"{where}: band {band}", "inverse variance 0 everywhere", "The survey has no data here."
                )
        # The published mask is true where a pixel is clean; HDF5 has one for all bands, Parquet one a band.
        flagged = np.broadcast_to(mask == 0, ivar.shape)[places]
        return {
            f"image_{name}_fraction": float(self._middle(bad.astype(np.float32), where).mean())
            for name, bad in (("masked", flagged), ("no_data", empty))
        }


class MmuSslLegacySurvey(_MmuImages):
    """The source ``mmu-ssl-legacysurvey``: the DR9 images of Stein et al. (2022), 152 px of g, r, z.

    The key is RELEASE-BRICKID-OBJID. The Parquet form lacks these columns: its ``object_id`` is the row's number among
    the images of the northern or of the southern sky, both from 0, so the key becomes ``stein-REGION-NUMBER``.

    Args:
        inputs: files or folders.
        size: of the images, in pixels of 0.262 arcsec.
        dtype: of the images in the dataset.
        region: "north" or "south"; needed where the identifiers are missing, unused elsewhere.
    """

    name = "mmu-ssl-legacysurvey"
    form: ClassVar = Form(
        fields=_PIXELS,
        scalars={
            "ra": ("ra",),
            "dec": ("dec",),
            "ebv": ("ebv",),
            "redshift": ("z_spec",),
            "release": ("release",),
            "brickid": ("brickid",),
            "brick_objid": ("objid",),
            **{
                f"{quantity}_{band}": (f"{quantity}_{band}",)
                for quantity in ("flux", "fiberflux", "psfdepth")
                for band in "grz"
            },
        },
    )

    def __init__(
        self, inputs: Sequence[Path], size: int = _SIZE, dtype: str = "float32", region: str | None = None
    ) -> None:
        super().__init__(inputs, size, dtype)
        self._region = region

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--region",
            choices=("north", "south"),
            help="of the Parquet files, which do not say it: their numbers start from 0 in each",
        )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(args.inputs, args.size, args.dtype, args.region)

    def keys(self, partition: int) -> Sequence[str]:
        part, names = self._parts[partition], ("release", "brickid", "objid")
        columns = read_identifiers(part, ["object_id"], optional=names)
        if all(name in columns for name in names):
            return ["-".join(numbers) for numbers in zip(*(columns[name] for name in names), strict=True)]
        if self._region is None:
            raise DataError(
                str(part), "no release, brickid and objid", "Say whose row numbers object_id are: --region north|south."
            )
        return [f"stein-{self._region}-{number}" for number in columns["object_id"]]


def _find_bands(published: np.ndarray, wanted: Sequence[str], where: str) -> list[int]:
    names = [band.decode(errors="replace") if isinstance(band, bytes) else str(band) for band in published]
    matches = [_BAND.fullmatch(name.strip()) for name in names]
    found = [match.group(1).lower() if match else "" for match in matches]
    missing = [band for band in wanted if band not in found]
    if missing:
        raise DataError(
            f"{where}: bands", ", ".join(names) or "none", f"No {' and '.join(missing)}: it cannot be used."
        )
    return [found.index(band) for band in wanted]


def _check_scale(scale: np.ndarray, layout: ImageLayout, where: str) -> None:
    if not np.allclose(scale, layout.pixel_scale_arcsec, rtol=_SCALE_TOLERANCE):
        raise DataError(
            f"{where}: scale",
            f"{scale.tolist()} arcsec",
            f"Flux is per pixel of {layout.pixel_scale_arcsec} arcsec in this data set: the file is another one's.",
        )


def _catalogue(galaxy: Galaxy) -> dict[str, int | float | str | bool]:
    """Published scalars but infinite ones, and the redshifts of -99 and the like of galaxies without spectrum."""
    return {
        name: value
        for name, value in galaxy.scalars.items()
        if not (isinstance(value, float) and (not np.isfinite(value) or (name == "redshift" and value < -1)))
    }
