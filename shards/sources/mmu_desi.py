"""Multimodal Universe's ``desi``: spectra of DESI's public releases, the arms coadded onto its grid of 7,781 bins.

Published by scripts/desi of MultimodalUniverse: flux in 1e-17 erg/s/cm2/A, inverse variance, wavelength in Angstrom and
a mask (true = bad) for each bin.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from astroclip_dist.data.stored.manifest import SpectrumLayout
from astroclip_dist.errors import DataError
from shards.grids.spectra_grid import Arm, coadd, wavelengths
from shards.sample import Sample
from shards.sources.mmu_file import Field, Form, Galaxy
from shards.sources.mmu_source import MmuSource

# The published wavelengths are float32, good to 0.0005 A.
_WAVELENGTH_TOLERANCE = 0.01


def _bins(name: str, kinds: str) -> Field:
    return Field(f"spectrum_{name}", (None,), kinds, "spectrum", (name,))


class MmuDesi(MmuSource):
    """The source ``mmu-desi``: spectrum and inverse variance; the key is the TARGETID.

    Spectra on DESI's grid go in as they are, others are resampled. Masked bins get inverse variance 0.
    """

    name = "mmu-desi"
    spectrum: SpectrumLayout | None = SpectrumLayout()
    ivar = True
    form: ClassVar = Form(
        fields={
            "flux": _bins("flux", "f"),
            "ivar": _bins("ivar", "f"),
            "lambda": _bins("lambda", "f"),
            "mask": _bins("mask", "biu"),
        },
        scalars={
            "ra": ("ra", "TARGET_RA"),
            "dec": ("dec", "TARGET_DEC"),
            "ebv": ("EBV",),
            "redshift": ("Z",),
            "redshift_error": ("ZERR",),
            "zwarn": ("ZWARN",),
            "spectype": ("SPECTYPE",),
            "deltachi2": ("DELTACHI2",),
            "survey": ("SURVEY",),
            "program": ("PROGRAM",),
            "healpix": ("HEALPIX",),
            "release": ("RELEASE",),
            "brickid": ("BRICKID",),
            "brick_objid": ("BRICK_OBJID",),
            "morphtype": ("MORPHTYPE",),
            **{f"flux_{band}": (f"FLUX_{band.upper()}",) for band in ("g", "r", "z", "w1", "w2")},
            **{f"fiberflux_{band}": (f"FIBERFLUX_{band.upper()}",) for band in "grz"},
        },
    )

    def _sample(self, key: str, galaxy: Galaxy, where: str) -> Sample:
        if not key.isdecimal():
            raise DataError(f"{where}: object_id", repr(key), "It is the TARGETID in this data set.")
        arrays = {name: np.asarray(array) for name, array in galaxy.arrays.items()}
        lengths = {name: array.shape for name, array in arrays.items()}
        if len(set(lengths.values())) > 1 or arrays["flux"].ndim != 1:
            raise DataError(f"{where}: spectrum", lengths, "All are as long as the wavelengths.")
        flux, ivar = self._on_grid(arrays, where)
        if not ivar.any():
            raise DataError(f"{where}: spectrum", "every bin is masked", "Drop it from the file.")
        metadata = {name: value for name, value in galaxy.scalars.items() if _is_known(value)}
        if isinstance(metadata.get("zwarn"), bool):
            # Some Parquet releases publish "there is no warning" under this name, others "there is one".
            metadata["zwarn_as_published"] = metadata.pop("zwarn")
        return Sample(key, spectrum=flux, ivar=ivar, metadata={"targetid": int(key), **metadata})

    def _on_grid(self, arrays: dict[str, np.ndarray], where: str) -> tuple[np.ndarray, np.ndarray]:
        """Flux and inverse variance, each (7781,) float32."""
        layout = self.spectrum or SpectrumLayout()
        wavelength, grid = arrays["lambda"].astype(np.float64), wavelengths(layout)
        if wavelength.shape == grid.shape and np.allclose(wavelength, grid, rtol=0, atol=_WAVELENGTH_TOLERANCE):
            wavelength = grid
        # In float64, so that what needs no resampling comes back bit for bit.
        flux, good = arrays["flux"].astype(np.float64), np.where(arrays["mask"] == 0, arrays["ivar"], np.float64(0))
        flux, ivar = coadd([Arm("spectrum", wavelength, flux[None], good[None])], layout, where)
        return flux[0], ivar[0]


def _is_known(value: int | float | str | bool) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
