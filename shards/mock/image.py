"""The cut-out of the sky: a galaxy among its neighbours through the atmosphere, with the survey's noise."""

from __future__ import annotations

from dataclasses import dataclass

import galsim
import numpy as np

from astroclip_dist.data.stored.manifest import ImageLayout
from shards.mock.attenuation import calzetti
from shards.mock.disc_maps import DiscMaps, make_disc_maps
from shards.mock.photometry import Region, effective_wavelengths
from shards.mock.point_spread import (
    GRID,
    PIXEL_SCALE,
    PointSpread,
    blur,
    fibre_aperture,
    point_spread,
    to_middle,
    transform_of,
)
from shards.mock.sed import BULGE, OLD_DISC, YOUNG_DISC
from shards.mock.structure import Structure

SIZE = ImageLayout().size
# 5-sigma point-source depth (AB) in g, r, z of the typical coadd: Dey et al. (2019) and DR9's description, rounded.
DEPTH: dict[Region, tuple[float, float, float]] = {"S": (24.7, 24.1, 23.3), "N": (24.2, 23.7, 23.2)}
_DEPTH_SCATTER = 0.15  # mag
# Brightness of the night sky, mag / arcsec2 (g and r dark, z typical): sets the shot noise of bright pixels.
_SKY_BRIGHTNESS = (22.0, 21.0, 18.8)
# Weight of each of the four nearest pixels in a pixel's noise: what resampling onto the coadd's grid mixes. BASS's
# native pixels are 0.454 arcsec wide, so g and r of the north are the most correlated.
_NOISE_MIXING: dict[Region, tuple[float, float, float]] = {"S": (0.07, 0.07, 0.07), "N": (0.18, 0.18, 0.07)}
_BULGE_ACCURACY = galsim.GSParams(folding_threshold=1e-2, maxk_threshold=5e-3, kvalue_accuracy=1e-4)
_MARGIN = (GRID - SIZE) // 2
_CUT = slice(_MARGIN, _MARGIN + SIZE)


@dataclass(frozen=True)
class GalaxyImage:
    """A galaxy alone, without noise.

    Args:
        flux: (3, SIZE, SIZE) float32, nanomaggies per pixel.
        fibre_share: (3 components, 3 bands), the share of each component's light that enters the fibre.
    """

    flux: np.ndarray
    fibre_share: np.ndarray


def draw_galaxy_image(
    structure: Structure,
    fluxes: np.ndarray,
    redshift: float,
    region: Region,
    fwhm: tuple[float, float, float],
    rng: np.random.Generator,
) -> GalaxyImage:
    """Lay the light of the three components where they are, behind the dust lanes, and blur it.

    Args:
        fluxes: (3 components, 3 bands), nanomaggies; the image on an endless canvas sums to them.
        fwhm: seeing in g, r, z, arcsec.
    """
    maps = make_disc_maps(structure, PIXEL_SCALE, GRID, rng) if fluxes[OLD_DISC:].sum() > 0 else None
    bulge = _bulge_transform(structure) if fluxes[BULGE].sum() > 0 else None
    reddening = calzetti(effective_wavelengths(region) / (1 + redshift))
    image = np.zeros((3, SIZE, SIZE), np.float32)
    fibre_share = np.zeros((3, 3))
    for band in range(3):
        spread = point_spread(fwhm[band])
        lanes = None
        if maps is not None:
            transmission = None if maps.dust is None else np.exp(-np.float32(reddening[band]) * maps.dust)
            old, young = (_on_grid(light, transmission, maps.oversampling) for light in (maps.old, maps.young))
            disc = old * np.float32(fluxes[OLD_DISC, band]) + young * np.float32(fluxes[YOUNG_DISC, band])
            image[band] += blur(disc, spread.transform)[_CUT, _CUT]
            fibre_share[OLD_DISC, band] = (old * spread.fibre).sum()
            fibre_share[YOUNG_DISC, band] = (young * spread.fibre).sum()
            lanes = None if transmission is None else _lanes_on_grid(transmission, maps, spread)
        if bulge is not None:
            blurred = to_middle(bulge * spread.transform)
            if lanes is not None:
                blurred *= lanes
                blurred /= blurred.sum()
            image[band] += np.float32(fluxes[BULGE, band]) * blurred[_CUT, _CUT]
            fibre_share[BULGE, band] = (blurred * fibre_aperture()).sum()
    return GalaxyImage(image, fibre_share)


def _bulge_transform(structure: Structure) -> np.ndarray:
    profile = galsim.Sersic(
        n=structure.bulge_sersic,
        half_light_radius=structure.bulge_radius,
        trunc=8 * structure.bulge_radius,
        gsparams=_BULGE_ACCURACY,
    )
    angle = structure.position_angle * galsim.radians
    return transform_of(profile.shear(q=structure.bulge_axis_ratio, beta=angle))


def _on_grid(light: np.ndarray, transmission: np.ndarray | None, oversampling: int) -> np.ndarray:
    """An oversampled map in image pixels in the middle of the grid; it sums to 1 whatever the dust takes.

    The spectral model already holds the galaxy's mean attenuation: lanes only move light.
    """
    seen = light if transmission is None else light * transmission
    return _widen(_bin(seen, oversampling) / seen.sum(), 0.0)


def _lanes_on_grid(transmission: np.ndarray, maps: DiscMaps, spread: PointSpread) -> np.ndarray:
    """The lanes in front of the bulge, blurred as the light is: (GRID, GRID)."""
    return blur(_widen(_bin(transmission, maps.oversampling) / maps.oversampling**2, 1.0), spread.transform)


def _bin(fine: np.ndarray, oversampling: int) -> np.ndarray:
    size = fine.shape[0] // oversampling
    return fine.reshape(size, oversampling, size, oversampling).sum((1, 3))


def _widen(small: np.ndarray, outside: float) -> np.ndarray:
    whole = np.full((GRID, GRID), outside, np.float32)
    start = (GRID - small.shape[0]) // 2
    whole[start : start + small.shape[0], start : start + small.shape[0]] = small
    return whole


def draw_depth(region: Region, rng: np.random.Generator) -> np.ndarray:
    """(3,), 5-sigma point-source depths, AB."""
    return np.array(DEPTH[region]) + rng.normal(0, _DEPTH_SCATTER, 3)


def sky_sigma(depth: np.ndarray, fwhm: tuple[float, float, float], region: Region) -> np.ndarray:
    """(3,), nanomaggies: the noise per pixel with which a fit of a point source reaches these depths at 5 sigma.

    In white noise the fit's error is sigma / sqrt(sum P^2), P the point spread function. The mixing of neighbours makes
    noise on larger scales, which the fit sees, stronger than between pixels by (1 + 4 m) / sqrt(1 + 4 m^2).
    """
    sharpness = np.array([point_spread(width).sharpness for width in fwhm])
    mixing = np.array(_NOISE_MIXING[region])
    return 10 ** (0.4 * (22.5 - depth)) / 5 * np.sqrt(sharpness) * np.sqrt(1 + 4 * mixing**2) / (1 + 4 * mixing)


def add_noise(image: np.ndarray, sigma: np.ndarray, region: Region, rng: np.random.Generator) -> np.ndarray:
    """Sky noise, slightly correlated between neighbours, and the shot noise of the sources.

    Args:
        image: (3, SIZE, SIZE), noiseless, nanomaggies.
        sigma: (3,), of the sky, per pixel.
    """
    sky = 10 ** (0.4 * (22.5 - np.array(_SKY_BRIGHTNESS))) * PIXEL_SCALE**2
    noisy = np.empty((3, SIZE, SIZE), np.float32)
    for band, mixing in enumerate(_NOISE_MIXING[region]):
        white = rng.standard_normal((SIZE + 2, SIZE + 2), dtype=np.float32)
        mixed = white[1:-1, 1:-1] + np.float32(mixing) * (
            white[:-2, 1:-1] + white[2:, 1:-1] + white[1:-1, :-2] + white[1:-1, 2:]
        )
        mixed /= np.float32(np.sqrt(1 + 4 * mixing**2))
        shot = np.sqrt(1 + np.maximum(image[band], 0) / np.float32(sky[band]))
        noisy[band] = image[band] + np.float32(sigma[band]) * mixed * shot
    return noisy


def blur_field(scene: np.ndarray, fwhm: tuple[float, float, float]) -> np.ndarray:
    """(3, GRID, GRID) as drawn -> (3, SIZE, SIZE) as seen."""
    return np.stack([blur(scene[band], point_spread(fwhm[band]).transform)[_CUT, _CUT] for band in range(3)])
