"""Spectra on a wavelength axis: smoothed, with the main lines where the galaxy's redshift puts them."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from astroclip_dist.data.stored.manifest import SpectrumLayout

INK, FAINT = "#374151", "#b4bac4"
FLUX_LABEL = "flux [1e-17 erg/s/cm²/Å]"
WAVELENGTH_LABEL = "observed wavelength [Å]"
# Vacuum wavelengths at rest, Angstrom; doublets by their middle.
LINES = {
    r"Ly$\alpha$": 1215.67,
    "C IV": 1549.5,
    "C III]": 1908.7,
    "Mg II": 2799.1,
    "[O II]": 3728.5,
    "Ca K": 3934.8,
    r"H$\delta$": 4102.9,
    r"H$\gamma$": 4341.7,
    r"H$\beta$": 4862.7,
    "[O III]": 5008.2,
    "Mg b": 5176.6,
    "Na D": 5894.6,
    r"H$\alpha$": 6564.6,
    "[S II]": 6725.5,
}
# AstroCLIP's Fig. D2 averages 20 bins of DESI's 0.8 A.
_SMOOTHED_ANGSTROM = 16.0


def wavelengths(layout: SpectrumLayout) -> np.ndarray:
    """(size,) of the bins' centres, Angstrom."""
    return layout.start_angstrom + layout.step_angstrom * np.arange(layout.size)


def smooth(flux: np.ndarray, good: np.ndarray, layout: SpectrumLayout) -> np.ndarray:
    """Running mean over some 16 Angstrom of the good bins; NaN where there is none.

    Args:
        flux: (size,); good: (size,) bool.
    """
    width = min(layout.size, max(1, round(_SMOOTHED_ANGSTROM / layout.step_angstrom)))
    box = np.ones(width)
    counted = np.convolve(good, box, mode="same")
    total = np.convolve(np.where(good, flux, 0.0), box, mode="same")
    return np.where(counted > 0.5, total / np.maximum(counted, 1), np.nan)


def draw_spectrum(
    axes: Axes, flux: np.ndarray, good: np.ndarray, layout: SpectrumLayout, *, redshift: float = np.nan
) -> None:
    """The smoothed spectrum, and the names of its lines above the axes where the redshift is known (not NaN)."""
    wavelength, line = wavelengths(layout), smooth(flux, good, layout)
    axes.plot(wavelength, line, color=INK, lw=0.8, zorder=3)
    known = line[np.isfinite(line)]
    low, high = np.percentile(known, [0.5, 99.9]) if len(known) else (0.0, 1.0)
    margin = max(0.12 * (high - low), 1e-3)
    axes.set(xlim=(wavelength[0], wavelength[-1]), ylim=(low - margin, high + margin))
    for name, rest in LINES.items():
        place = rest * (1 + redshift)
        if wavelength[0] < place < wavelength[-1]:
            axes.axvline(place, color="#9ca3af", lw=0.6, ls=(0, (2, 2)), zorder=1)
            axes.annotate(
                name,
                (place, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 1),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=6.5,
                color="#6b7280",
            )
