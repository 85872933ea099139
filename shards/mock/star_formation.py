"""Star-formation histories, as the mass formed in each bin of stellar age."""

from __future__ import annotations

from functools import cache

import numpy as np

# Stellar ages (log10 yr) of all grids, and the edges of their bins (yr). The first bin begins at birth.
LOG_AGES = np.round(np.arange(6.0, 10.15, 0.1), 1)
AGES = 10**LOG_AGES
AGE_EDGES = np.concatenate([[0.0], 10 ** (LOG_AGES + 0.05)])
# The labels' star-formation rate is the mean over this time (yr).
RATE_TIME = 10**8.05
IN_RATE = AGES < RATE_TIME
# Stars below 300 Myr, about a rotation of a disc, are still near where they formed: the image's arms and knots.
IS_YOUNG = AGES < 10**8.55

_TIMESCALES = np.geomspace(0.25, 60, 300)


def _formed_exponential(time: np.ndarray, timescale: float) -> np.ndarray:
    return 1 - np.exp(-time / timescale)


def _formed_delayed(time: np.ndarray, timescale: float) -> np.ndarray:
    return 1 - np.exp(-time / timescale) * (1 + time / timescale)


def exponential_burst(duration: float, timescale: float) -> np.ndarray:
    """SFR ~ exp(-t / tau): bulges.

    Args:
        duration: Gyr since the first stars.
        timescale: tau, Gyr.

    Returns:
        (ages,), fractions of the formed mass; they sum to 1.
    """
    look_back = np.clip(duration - AGE_EDGES / 1e9, 0, None)
    formed = _formed_exponential(look_back, timescale)
    return -np.diff(formed) / formed[0]


def delayed(duration: float, timescale: float) -> np.ndarray:
    """SFR ~ t exp(-t / tau): discs. Arguments and result as :func:`exponential_burst`."""
    look_back = np.clip(duration - AGE_EDGES / 1e9, 0, None)
    formed = _formed_delayed(look_back, timescale)
    return -np.diff(formed) / formed[0]


def add_burst(history: np.ndarray, fraction: float, age: float) -> np.ndarray:
    """Form ``fraction`` of the mass in a burst ``age`` Gyr ago, spread over two age bins."""
    first = int(np.clip(np.searchsorted(LOG_AGES, np.log10(age) + 9), 0, len(AGES) - 2))
    mixed = history * (1 - fraction)
    mixed[first : first + 2] += fraction / 2
    return mixed


@cache
def _log_specific_rates(duration_centigyr: int) -> np.ndarray:
    duration = duration_centigyr / 100
    x = duration / _TIMESCALES
    rate = x / _TIMESCALES * np.exp(-x) / (1 - np.exp(-x) * (1 + x)) / 1e9
    return np.log10(rate + 1e-30)


def delayed_timescale(duration: float, log_specific_rate: float) -> float:
    """The tau (Gyr) whose delayed history ends with this SFR per formed mass (log10 1/yr), or the nearest there is."""
    rates = _log_specific_rates(round(duration * 100))
    return float(_TIMESCALES[np.argmin(np.abs(rates - log_specific_rate))])
