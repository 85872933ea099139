"""Fluxes through the real filters: DECam in the south, BASS and Mosaic-3 (MzLS) in the north."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from speclite.filters import load_filter

from shards.mock.sed import YOUNG_DISC, ObservedLight

BANDS = ("g", "r", "z")
Region = Literal["N", "S"]
# System throughput with atmosphere, as shipped with speclite (cameras: Dey et al. 2019).
_FILTERS: dict[Region, tuple[str, str, str]] = {
    "S": ("decamDR1-g", "decamDR1-r", "decamDR1-z"),
    "N": ("BASS-g", "BASS-r", "MzLS-z"),
}
_STEP = 2.0
_WAVELENGTH = np.arange(3400.0, 11000.0, _STEP)
_AB_NANOMAGGY = 3631e-23 * 2.99792458e18 / 1e-17 * 1e-9  # f_nu = 1 nanomaggy as f_lambda lambda^2, 1e-17 erg/s/cm2/A


@cache
def _responses(region: Region) -> tuple[np.ndarray, np.ndarray]:
    """(3, wavelengths), photon responses times wavelength; the sum of f_lambda d(lambda) times them is nanomaggies."""
    curves = [load_filter(name) for name in _FILTERS[region]]
    responses = np.array([np.interp(_WAVELENGTH, c.wavelength, c.response, left=0, right=0) for c in curves])
    weights = responses * _WAVELENGTH
    reference = (weights * _AB_NANOMAGGY / _WAVELENGTH**2).sum(axis=1) * _STEP
    return _WAVELENGTH, weights / reference[:, None]


def effective_wavelengths(region: Region) -> np.ndarray:
    """(3,), angstrom, of a source flat in f_lambda."""
    wavelength, weights = _responses(region)
    return (weights * wavelength).sum(axis=1) / weights.sum(axis=1)


def band_flux(wavelength: np.ndarray, flux_density: np.ndarray, region: Region) -> np.ndarray:
    """Synthetic photometry.

    Args:
        wavelength: (n,), increasing, angstrom.
        flux_density: (..., n), 1e-17 erg/s/cm2/A; taken as 0 outside.

    Returns:
        (..., 3), nanomaggies in g, r, z.
    """
    grid, weights = _responses(region)
    at_nodes = np.array([np.interp(wavelength, grid, row, left=0, right=0) for row in weights])
    return np.einsum("...w,bw->...b", flux_density, at_nodes * np.gradient(wavelength))


def component_fluxes(light: ObservedLight, region: Region) -> np.ndarray:
    """(3 components, 3 bands), nanomaggies; the emission lines are in the young disc's."""
    fluxes = band_flux(light.wavelength, light.components, region)
    fluxes[YOUNG_DISC] += line_band_flux(light, region).sum(axis=1)
    return fluxes


def line_band_flux(light: ObservedLight, region: Region) -> np.ndarray:
    """(3 bands, lines), nanomaggies that each emission line brings to each band."""
    grid, weights = _responses(region)
    at_lines = np.array([np.interp(light.line_wavelength, grid, row, left=0, right=0) for row in weights])
    return at_lines * light.line_flux


def magnitude(flux: np.ndarray) -> np.ndarray:
    """AB magnitude of nanomaggies."""
    return 22.5 - 2.5 * np.log10(flux)
