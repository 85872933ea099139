"""What a survey's catalogue would say of a galaxy: noisy labels, and beside them the truth."""

from __future__ import annotations

from typing import Any

import numpy as np

from shards.mock.attenuation import MILKY_WAY_COEFFICIENTS
from shards.mock.photometry import BANDS, magnitude
from shards.mock.population import Galaxy
from shards.mock.sed import BULGE, Properties
from shards.mock.sky import Position

# Scatter of estimates about the truth, as large as the posteriors of PROVABGS (Hahn et al. 2023): dex, dex, Gyr, dex.
LABEL_NOISE = {"log_stellar_mass": 0.10, "log_metallicity": 0.30, "age_gyr": 1.5, "log_ssfr": 0.35}
REDSHIFT_NOISE = 1e-4  # of 1 + z
MAGNITUDE_NOISE = 0.03  # the model's floor; sky noise comes on top
_YOUNGEST = 0.1  # Gyr


def catalogue_entry(
    galaxy: Galaxy,
    properties: Properties,
    position: Position,
    fluxes: np.ndarray,
    sigma: np.ndarray,
    fwhm: tuple[float, float, float],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """The metadata of a sample.

    Args:
        fluxes: (3 components, 3 bands), nanomaggies as observed, behind the Milky Way's dust.
        sigma: (3,), sky noise per pixel, nanomaggies.
        fwhm: seeing, arcsec.

    Returns:
        ``flux_*`` as observed; ``mag_*`` corrected for the Milky Way's dust, as the survey's ``dered_mag_*``;
        ``true_*`` the noiseless values of the same names.
    """
    truth = {
        "redshift": galaxy.redshift,
        "log_stellar_mass": properties.log_stellar_mass,
        "log_metallicity": properties.log_metallicity,
        "age_gyr": properties.age_gyr,
        "log_ssfr": properties.log_ssfr,
    }
    entry: dict[str, Any] = {
        "ra": position.ra,
        "dec": position.dec,
        "ebv": position.ebv,
        "survey_region": position.region,
        "morphology": galaxy.morphology,
        "redshift": galaxy.redshift + REDSHIFT_NOISE * (1 + galaxy.redshift) * rng.standard_normal(),
    }
    for name, noise in LABEL_NOISE.items():
        entry[name] = truth[name] + noise * rng.standard_normal()
    entry["age_gyr"] = max(entry["age_gyr"], _YOUNGEST)
    total = fluxes.sum(axis=0)
    # An aperture of twice the seeing holds the sky noise of the measured flux.
    pixels = np.pi * (np.array(fwhm) / 0.262) ** 2
    noise = np.hypot(0.4 * np.log(10) * MAGNITUDE_NOISE * total, sigma * np.sqrt(pixels))
    # Relative floor: a magnitude must exist for every galaxy that the survey selected.
    measured = np.maximum(total + noise * rng.standard_normal(3), 0.1 * total)
    for band, coefficient, observed, true, spread, blur in zip(
        BANDS, MILKY_WAY_COEFFICIENTS, measured, total, sigma, fwhm, strict=True
    ):
        entry[f"flux_{band}"] = float(observed)
        entry[f"mag_{band}"] = float(magnitude(observed)) - coefficient * position.ebv
        entry[f"true_mag_{band}"] = float(magnitude(true)) - coefficient * position.ebv
        entry[f"sky_sigma_{band}"] = float(spread)
        entry[f"psf_fwhm_{band}"] = blur
    entry["bulge_fraction"] = float(fluxes[BULGE, 1] / total[1])
    return {name: float(value) if isinstance(value, np.floating) else value for name, value in entry.items()} | {
        f"true_{name}": float(value) for name, value in truth.items()
    }
