"""Put spectra onto a dataset's wavelength grid: overlap-weighted resampling and coaddition with inverse variances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from astroclip_dist.data.stored.manifest import SpectrumLayout
from astroclip_dist.errors import DataError
from shards.grids.overlap import overlap_lengths


class Arm(NamedTuple):
    """Spectra of one spectrograph arm (or of a whole instrument), as observed.

    Args:
        name: for messages.
        wavelength: (pixels,) bin centres in Angstrom, increasing.
        flux: (spectra, pixels).
        ivar: (spectra, pixels), inverse variance; 0 = masked, and the flux there may be anything.
    """

    name: str
    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray


def wavelengths(layout: SpectrumLayout) -> np.ndarray:
    """(size,) float64: the centres of the grid's bins, Angstrom."""
    return layout.start_angstrom + layout.step_angstrom * np.arange(layout.size)


def coadd(arms: Sequence[Arm], layout: SpectrumLayout, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Average all arms on the grid, weighted by inverse variance and by overlap.

    An input pixel gives each bin the fraction of its information that lies there: w_ji = ivar_i x overlap_ji / width_i.
    Bin j then has flux sum_i w_ji flux_i / sum_i w_ji and inverse variance sum_i w_ji. The sum of inverse variances is
    that of the input, so a pixel wider than a bin does not count twice; bins that share it have correlated noise.
    Where nothing is known, flux and inverse variance are 0.

    Args:
        where: the file, for messages.

    Returns:
        flux and ivar, each (spectra, layout.size) float32.

    Raises:
        DataError: wavelengths that do not increase or lie off the grid, values that are not finite where the inverse
            variance is not 0, or a negative inverse variance.
    """
    weighted = np.zeros((layout.size, len(arms[0].flux)))
    information = np.zeros_like(weighted)
    grid_edges = _edges(wavelengths(layout))
    for arm in arms:
        place = f"{where}, {arm.name}"
        if not (np.isfinite(arm.wavelength).all() and (np.diff(arm.wavelength) > 0).all()):
            raise DataError(f"{place}: wavelengths", "not increasing", "The file is damaged or of another format.")
        edges = _edges(arm.wavelength)
        if edges[-1] <= grid_edges[0] or edges[0] >= grid_edges[-1]:
            raise DataError(
                f"{place}: wavelengths",
                f"{arm.wavelength[0]:.1f} to {arm.wavelength[-1]:.1f} A",
                f"The grid is {grid_edges[0]:.1f} to {grid_edges[-1]:.1f} A: check the unit (Angstrom, not log).",
            )
        _check_values(arm, place)
        share = overlap_lengths(edges, grid_edges) / np.diff(edges)
        information += share @ arm.ivar.astype(np.float64).T
        weighted += share @ np.where(arm.ivar > 0, arm.flux * arm.ivar, 0.0).astype(np.float64).T
    flux = np.divide(weighted, information, out=np.zeros_like(weighted), where=information > 0)
    return flux.T.astype(np.float32), information.T.astype(np.float32)


def _edges(centres: np.ndarray) -> np.ndarray:
    """Bin edges half-way between centres, in float64."""
    middle = 0.5 * (centres[1:] + centres[:-1]).astype(np.float64)
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def _check_values(arm: Arm, place: str) -> None:
    if not np.isfinite(arm.ivar).all() or (arm.ivar < 0).any():
        raise DataError(
            f"{place}: inverse variance",
            f"{np.count_nonzero(~(arm.ivar >= 0))} negative or NaN",
            "It is >= 0, with 0 for masked.",
        )
    bad = np.count_nonzero(~np.isfinite(arm.flux) & (arm.ivar > 0))
    if bad:
        raise DataError(
            f"{place}: flux", f"{bad} values not finite", "Set their inverse variance to 0, or drop the spectrum."
        )
