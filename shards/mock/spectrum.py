"""The spectrum that a fibre on the galaxy's centre sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from shards.mock.desi_noise import NOMINAL_EXPOSURE, RESOLUTION_SIGMA, WAVELENGTH, inverse_variance
from shards.mock.grid_axes import PIXEL_KM_S
from shards.mock.photometry import Region, band_flux, effective_wavelengths, line_band_flux
from shards.mock.sed import YOUNG_DISC, ObservedLight

_LIGHT_SPEED = 299792.458  # km/s
# The stellar library's own broadening, MILES at 5000 A (Falcon-Barroso et al. 2011): 2.5 A FWHM.
_LIBRARY_SIGMA = 64.0  # km/s
_MASKED_RUNS = 3.0  # cosmic rays and bad columns that all exposures share, per spectrum


@dataclass(frozen=True)
class FibreSpectrum:
    """A spectrum on the DESI grid, its inverse variance (0 = masked) and the truth; (7781,), 1e-17 erg/s/cm2/A."""

    flux: np.ndarray
    ivar: np.ndarray
    noiseless: np.ndarray


def match_bands(light: ObservedLight, band_shares: np.ndarray, region: Region) -> np.ndarray:
    """Shares at the bands' effective wavelengths whose interpolation gives each component its flux in each band.

    Seeing differs from band to band, so a share that is right at a band's middle is a few per cent off over its width.

    Args:
        band_shares: (3 components, 3 bands), the share of each component's flux that the image has in the fibre.

    Returns:
        (3 components, 3 nodes), for :func:`spectrum_on`; photometry of that spectrum is the image's in the fibre.
    """
    nodes = np.array(band_shares)
    between = share_at(light.wavelength, np.eye(3), region)
    for component, stars in enumerate(light.components):
        response = band_flux(light.wavelength, between * stars, region).T
        if component == YOUNG_DISC:
            response = response + (line_band_flux(light, region) @ share_at(light.line_wavelength, np.eye(3), region).T)
        flux = response.sum(axis=1)
        if flux.min() > 0:
            nodes[component] = np.linalg.solve(response, band_shares[component] * flux)
    return nodes


def share_at(wavelength: np.ndarray, shares: np.ndarray, region: Region) -> np.ndarray:
    """Shares of light as functions of wavelength: linear between the bands' effective wavelengths, constant beyond.

    Args:
        shares: (components, 3), at those wavelengths.

    Returns:
        (components, wavelengths).
    """
    bands = effective_wavelengths(region)
    return np.array([np.interp(wavelength, bands, row) for row in shares])


def spectrum_on(
    wavelength: np.ndarray, light: ObservedLight, shares: np.ndarray, region: Region, velocity_dispersion: float
) -> np.ndarray:
    """Noiseless spectrum on an evenly spaced grid, broadened by the galaxy's motions and the instrument.

    Args:
        wavelength: (n,), angstrom, evenly spaced by about 0.8.
        shares: (3 components, 3), how much of each component's light is collected at the bands' effective wavelengths;
            ones for the whole galaxy.
        velocity_dispersion: km/s, of the stars; the gas is taken to move at 0.6 of it.

    Returns:
        (n,), 1e-17 erg/s/cm2/A.
    """
    stars = (light.components * share_at(light.wavelength, shares, region)).sum(axis=0)
    broadening = np.sqrt(max(velocity_dispersion**2 - _LIBRARY_SIGMA**2, 1.0)) / PIXEL_KM_S
    flux = np.interp(wavelength, light.wavelength, gaussian_filter1d(stars, broadening))
    line_flux = light.line_flux * share_at(light.line_wavelength, shares, region)[YOUNG_DISC]
    sigma = np.hypot(0.6 * velocity_dispersion / _LIGHT_SPEED * light.line_wavelength, RESOLUTION_SIGMA)
    step = wavelength[1] - wavelength[0]
    for centre, strength, width in zip(light.line_wavelength, line_flux, sigma, strict=True):
        first, last = np.searchsorted(wavelength, (centre - 6 * width, centre + 6 * width))
        if strength > 0 and first < last:
            profile = np.exp(-0.5 * ((wavelength[first:last] - centre) / width) ** 2)
            # Whole lines keep their flux exactly; one that the grid's end cuts keeps its profile.
            norm = profile.sum() * step if last - first > 11 * width / step else np.sqrt(2 * np.pi) * width
            flux[first:last] += strength / norm * profile
    return flux


def observe_spectrum(
    light: ObservedLight, fibre_share: np.ndarray, region: Region, velocity_dispersion: float, rng: np.random.Generator
) -> FibreSpectrum:
    """One galaxy through a DESI fibre: exposures of one to five nominal ones, nights of different airglow.

    Args:
        fibre_share: (3 components, 3 bands), as the galaxy's image has it.
        velocity_dispersion: km/s.
    """
    noiseless = spectrum_on(WAVELENGTH, light, match_bands(light, fibre_share, region), region, velocity_dispersion)
    exposure = NOMINAL_EXPOSURE * 10 ** rng.uniform(0, 0.7)
    ivar = inverse_variance(noiseless, exposure, airglow=10 ** rng.normal(0, 0.12))
    flux = noiseless + rng.standard_normal(len(noiseless)) / np.sqrt(ivar)
    for _ in range(rng.poisson(_MASKED_RUNS)):
        first = int(rng.integers(len(flux)))
        last = first + int(rng.integers(2, 8))
        # A pixel that no exposure measured has flux 0 and inverse variance 0 in the survey's coadds.
        flux[first:last] = 0
        ivar[first:last] = 0
    return FibreSpectrum(flux.astype(np.float32), ivar.astype(np.float32), noiseless)
