"""How good redshifts are.

With the scaled residual d = (z_predicted - z) / (1 + z): sigma_NMAD = 1.4826 median |d - median d| (Brammer et al.
2008), the width of the core, blind to outliers; outlier fraction = share with |d| > 0.15 (Hildebrandt et al. 2010);
bias = mean d. R2 = 1 - sum (z_predicted - z)^2 / sum (z - mean z)^2: 1 is perfect, 0 is no better than the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

OUTLIER = 0.15
RESAMPLES = 1000


@dataclass(frozen=True)
class RedshiftQuality:
    """``r2_low`` and ``r2_high`` bound the central 95 % of R2 over bootstrap resamples of the galaxies."""

    r2: float
    r2_low: float
    r2_high: float
    sigma_nmad: float
    outlier_fraction: float
    bias: float


def redshift_quality(truth: np.ndarray, predicted: np.ndarray) -> RedshiftQuality:
    """All measures of (n,) predicted redshifts, n >= 2."""
    residual = (predicted - truth) / (1 + truth)
    low, high = np.nanpercentile([r2(truth[i], predicted[i]) for i in _resamples(len(truth))], [2.5, 97.5])
    return RedshiftQuality(
        r2=r2(truth, predicted),
        r2_low=float(low),
        r2_high=float(high),
        sigma_nmad=float(1.4826 * np.median(np.abs(residual - np.median(residual)))),
        outlier_fraction=float(np.mean(np.abs(residual) > OUTLIER)),
        bias=float(residual.mean()),
    )


def r2(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Coefficient of determination; NaN where the truth does not vary."""
    spread = ((truth - truth.mean()) ** 2).sum()
    return float(1 - ((predicted - truth) ** 2).sum() / spread) if spread > 0 else float("nan")


def r2_difference(truth: np.ndarray, one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """R2 of ``one`` minus R2 of ``other`` on the same galaxies, and the bounds of its central 95 % over paired
    bootstrap resamples: an interval that excludes 0 says which is better."""
    differences = [r2(truth[i], one[i]) - r2(truth[i], other[i]) for i in _resamples(len(truth))]
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    return r2(truth, one) - r2(truth, other), float(low), float(high)


def _resamples(n: int) -> np.ndarray:
    """(RESAMPLES, n): the same draws for every method, so that differences are paired."""
    return np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
