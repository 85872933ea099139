"""How good predictions are.

With the scaled residual d = (z_predicted - z) / (1 + z): sigma_NMAD = 1.4826 median |d - median d| (Brammer et al.
2008), the width of the core, blind to outliers; outlier fraction = share with |d| > 0.15 (Hildebrandt et al. 2010);
bias = mean d. R2 = 1 - sum (predicted - true)^2 / sum (true - mean true)^2: 1 is perfect, 0 is no better than the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

OUTLIER = 0.15
RESAMPLES = 1000


class Interval(NamedTuple):
    """A number, and the bounds of the central 95 % of it over bootstrap resamples of the galaxies."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RedshiftErrors:
    """How redshifts scatter about the truth."""

    sigma_nmad: float
    outlier_fraction: float
    bias: float


def redshift_errors(truth: np.ndarray, predicted: np.ndarray) -> RedshiftErrors:
    """Of (n,) predicted redshifts."""
    residual = (predicted - truth) / (1 + truth)
    return RedshiftErrors(
        sigma_nmad=float(1.4826 * np.median(np.abs(residual - np.median(residual)))),
        outlier_fraction=float(np.mean(np.abs(residual) > OUTLIER)),
        bias=float(residual.mean()),
    )


def r2(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Coefficient of determination; NaN where the truth does not vary."""
    spread = ((truth - truth.mean()) ** 2).sum()
    return float(1 - ((predicted - truth) ** 2).sum() / spread) if spread > 0 else float("nan")


def r2_interval(truth: np.ndarray, predicted: np.ndarray) -> Interval:
    """R2 of (n,) predictions, n >= 2."""
    low, high = np.nanpercentile([r2(truth[i], predicted[i]) for i in _resamples(len(truth))], [2.5, 97.5])
    return Interval(r2(truth, predicted), float(low), float(high))


def r2_difference(truth: np.ndarray, one: np.ndarray, other: np.ndarray) -> Interval:
    """R2 of ``one`` minus R2 of ``other`` on the same galaxies, over paired resamples: bounds that exclude 0 say which
    is better."""
    differences = [r2(truth[i], one[i]) - r2(truth[i], other[i]) for i in _resamples(len(truth))]
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    return Interval(r2(truth, one) - r2(truth, other), float(low), float(high))


def _resamples(n: int) -> np.ndarray:
    """(RESAMPLES, n): the same draws for every method, so that differences are paired."""
    return np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
