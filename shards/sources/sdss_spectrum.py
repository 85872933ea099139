"""Read an SDSS spectrum file (spec or spec-lite) onto a dataset's wavelength grid.

Format: https://data.sdss.org/datamodel/files/SPECTRO_REDUX/RUN2D/spectra/PLATE4/spec.html. Wavelengths are vacuum and
heliocentric, log10 spaced; flux is 1e-17 erg/s/cm2/A.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from astroclip_dist.data.stored.manifest import SpectrumLayout
from astroclip_dist.errors import DataError
from shards.grids.spectra_grid import Arm, coadd
from shards.sources.fits_file import hdu_data, open_fits, table_column

# SPPIXMASK bits 0 to 15 are about the whole fibre (one would drop a good spectrum), bits 16 to 31 about a pixel.
_PIXEL_FLAGS = np.uint32(0xFFFF0000)


@dataclass(frozen=True)
class SdssSpectrum:
    """A spectrum on the grid, (size,) float32 each, and what its file says of the galaxy."""

    flux: np.ndarray
    ivar: np.ndarray
    metadata: dict[str, str | int | float]


def read_sdss_spectrum(path: Path, layout: SpectrumLayout) -> SdssSpectrum:
    """Read and resample one file.

    Raises:
        DataError: the file is damaged, lacks a column, or has no usable pixel on the grid.
    """
    with open_fits(path) as hdus:
        coadded = hdu_data(hdus, path, "COADD")
        catalogue = hdu_data(hdus, path, "SPECOBJ")
        loglam, flux, ivar, mask = (
            table_column(coadded, path, "COADD", name) for name in ("loglam", "flux", "ivar", "and_mask")
        )
        metadata: dict[str, str | int | float] = {
            field: table_column(catalogue, path, "SPECOBJ", column)[0].item()
            for field, column in (
                ("sdss_plate", "PLATE"),
                ("sdss_mjd", "MJD"),
                ("sdss_fiber", "FIBERID"),
                ("sdss_class", "CLASS"),
                ("sdss_subclass", "SUBCLASS"),
                ("sdss_redshift", "Z"),
                ("sdss_redshift_error", "Z_ERR"),
                ("sdss_zwarning", "ZWARNING"),
            )
        }
    usable = np.where(mask.view(np.uint32) & _PIXEL_FLAGS, 0.0, ivar)
    arm = Arm("COADD", 10.0 ** loglam.astype(np.float64), flux[None], usable[None])
    fluxes, ivars = coadd([arm], layout, str(path))
    if not ivars.any():
        raise DataError(f"{path} HDU COADD", "every pixel is masked", "Leave this galaxy out.")
    return SdssSpectrum(fluxes[0], ivars[0], metadata)
