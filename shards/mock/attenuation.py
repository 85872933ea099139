"""Dust: in the galaxy (Calzetti et al. 2000) and in the Milky Way (the survey's own coefficients)."""

from __future__ import annotations

import numpy as np

# A_band / E(B-V) of the Legacy Surveys (DR9; Schlafly & Finkbeiner 2011) at the effective wavelengths of g, r, z.
MILKY_WAY_COEFFICIENTS = (3.214, 2.165, 1.211)
_MILKY_WAY_ANGSTROM = (4838.0, 6439.0, 9214.0)


def calzetti(wavelength: np.ndarray) -> np.ndarray:
    """A(lambda) / A_V of starburst galaxies: Calzetti et al. (2000), eq. 4, R_V = 4.05.

    Args:
        wavelength: rest frame, angstrom, 1200 to 22000.
    """
    micron_inverse = 1e4 / wavelength
    blue = 2.659 * (-2.156 + micron_inverse * (1.509 + micron_inverse * (-0.198 + 0.011 * micron_inverse)))
    red = 2.659 * (-1.857 + 1.040 * micron_inverse)
    return (np.where(wavelength < 6300, blue, red) + 4.05) / 4.05


def milky_way(wavelength: np.ndarray) -> np.ndarray:
    """A(lambda) / E(B-V) of the Milky Way.

    Our approximation: the parabola in log-log through the survey's three coefficients, which makes image, spectrum and
    the survey's correction agree exactly at the bands' effective wavelengths.

    Args:
        wavelength: observed frame, angstrom, 3000 to 11000.
    """
    parabola = np.polyfit(np.log(_MILKY_WAY_ANGSTROM), np.log(MILKY_WAY_COEFFICIENTS), 2)
    return np.exp(np.polyval(parabola, np.log(wavelength)))
