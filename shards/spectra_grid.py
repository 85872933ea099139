"""Put spectra onto a dataset's wavelength grid: overlap-weighted resampling and coaddition with inverse variances."""

from __future__ import annotations

import numpy as np

from astroclip_dist.data.manifest import SpectrumLayout


def wavelengths(layout: SpectrumLayout) -> np.ndarray:
    """(size,) float64: the centres of the grid's bins, Angstrom."""
    return layout.start_angstrom + layout.step_angstrom * np.arange(layout.size)
