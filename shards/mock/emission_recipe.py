"""Emission lines of star-forming gas from published strong-line relations, for the built-in stellar grid."""

from __future__ import annotations

import numpy as np

from shards.mock.star_formation import AGE_EDGES, AGES

_SOLAR_LUMINOSITY = 3.828e33  # erg/s
# H-alpha luminosity (erg/s) of a steady 1 Msun/yr: Kennicutt & Evans (2012), table 1.
_HALPHA_PER_RATE = 10**41.27
_NEBULA_AGE = 1.05e7
# A population ionises steadily for this long, then as age**-4 (our approximation of Starburst99's decline).
_STEADY_AGE = 3e6
_SOLAR_OXYGEN = 8.69  # 12 + log(O/H), Asplund et al. (2009)

LOG_IONISATION = np.array([-4.0, -3.0, -2.0])
LINE_WAVELENGTH = np.array(
    [
        6564.61,  # H-alpha
        4862.69,  # H-beta
        4341.69,  # H-gamma
        4102.90,  # H-delta
        3971.20,  # H-epsilon
        3727.09,  # [O II]
        3729.88,
        3869.86,  # [Ne III]
        4960.30,  # [O III]
        5008.24,
        5877.25,  # He I
        6302.05,  # [O I]
        6549.86,  # [N II]
        6585.27,
        6718.29,  # [S II]
        6732.67,
        9071.1,  # [S III]
        9533.2,
    ]
)


def recipe_lines(log_metallicity: np.ndarray) -> np.ndarray:
    """Line luminosities of gas around young stars.

    H-alpha: Kennicutt & Evans (2012). Balmer decrement: case B, 10^4 K (Osterbrock & Ferland 2006). [N II]/H-alpha and
    [O III]/H-beta against oxygen abundance: Pettini & Pagel (2004), eqs. 1 and 3. [O II], [S II] and the trend with
    ionisation: our approximations of the sequences in Kewley & Dopita (2002).

    Args:
        log_metallicity: (Z,), log10 Z / Zsun.

    Returns:
        (U, Z, young ages, lines), Lsun per solar mass formed in each age bin.
    """
    young = AGES <= _NEBULA_AGE
    rate = np.where(AGES < _STEADY_AGE, 1.0, (AGES / _STEADY_AGE) ** -4)[young]
    widths = np.diff(AGE_EDGES)[young]
    halpha = rate * _HALPHA_PER_RATE / _SOLAR_LUMINOSITY / (rate * widths).sum()
    ratios = np.array([[_ratios_to_halpha(u, z) for z in log_metallicity] for u in LOG_IONISATION])
    return halpha[None, None, :, None] * ratios[:, :, None, :]


def _ratios_to_halpha(log_ionisation: float, log_metallicity: float) -> np.ndarray:
    """(lines,), in the order of ``LINE_WAVELENGTH``."""
    oxygen = float(np.clip(_SOLAR_OXYGEN + log_metallicity, 7.6, 9.0))
    ionised = log_ionisation + 3
    log_n2 = min((oxygen - 8.90) / 0.57, -0.30)
    log_o3 = float(np.clip((8.73 - oxygen) / 0.32 + log_n2, -1.0, 0.75)) + 0.6 * ionised
    hbeta = 1 / 2.86
    n2 = 10 ** (log_n2 - 0.3 * ionised)
    o3 = 10 ** min(log_o3, 0.9) * hbeta
    o2 = 10 ** (0.45 - 1.0 * (oxygen - 8.45) ** 2 - 0.3 * ionised) * hbeta
    s2 = 10 ** (-0.50 - 0.4 * (oxygen - 8.7) ** 2 - 0.4 * ionised)
    s3 = 0.08 * 10 ** (0.3 * ionised)
    balmer = hbeta * np.array([2.86, 1.0, 0.468, 0.259, 0.159])
    metals = [0.42 * o2, 0.58 * o2, 0.09 * o3, o3 / 2.98, o3, 0.11 * hbeta, 0.08 * s2, n2 / 3.05, n2]
    return np.array([*balmer, *metals, 0.58 * s2, 0.42 * s2, s3, 2.5 * s3])
