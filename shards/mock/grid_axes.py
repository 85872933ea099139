"""The axes that every stellar grid shares, and the tables over them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Changes whenever a cached table would differ: the cache's file name carries it.
RECIPE_VERSION = 1

# Rest-frame vacuum wavelengths, 60 km/s apart: a redshift is a shift, a velocity dispersion one Gaussian.
LOG_STEP = 2e-4
WAVELENGTH = np.exp(np.arange(np.log(1850.0), np.log(11500.0), LOG_STEP))
PIXEL_KM_S = LOG_STEP * 299792.458


@dataclass(frozen=True)
class GridTables:
    """What one solar mass of stars, formed at once, emits.

    Args:
        log_metallicity: (Z,), log10 Z / Zsun.
        light: (Z, ages, wavelengths) float32, Lsun / angstrom, on ``star_formation.LOG_AGES`` and ``WAVELENGTH``.
        surviving: (Z, ages), stellar mass left (stars and remnants).
        line_wavelength: (lines,), rest frame, vacuum, angstrom.
        log_ionisation: (U,), log10 of the ionisation parameter.
        lines: (U, Z, young ages, lines), Lsun; the first ages of ``LOG_AGES``, up to 10 Myr.
    """

    log_metallicity: np.ndarray
    light: np.ndarray
    surviving: np.ndarray
    line_wavelength: np.ndarray
    log_ionisation: np.ndarray
    lines: np.ndarray


def air_to_vacuum(wavelength: np.ndarray) -> np.ndarray:
    """Angstrom in air to angstrom in vacuum: Ciddor (1996) as inverted by Piskunov for VALD; accurate to 1e-7."""
    s2 = (1e4 / wavelength) ** 2
    index = 1 + 8.336624212083e-5 + 0.02408926869968 / (130.1065924522 - s2) + 1.599740894897e-4 / (38.92568793293 - s2)
    return np.where(wavelength > 2000, wavelength * index, wavelength)
