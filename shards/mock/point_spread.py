"""How the atmosphere and the telescope blur: the point spread function of each region and band, and the fibre."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import galsim
import numpy as np
import scipy.fft

from shards.mock.photometry import Region

PIXEL_SCALE = 0.262  # arcsec
# Images are convolved on a wider grid than they are kept, so that what wraps around its edges is cut away.
GRID = 240
# Median delivered seeing (FWHM, arcsec) in g, r, z: Dey et al. (2019) and DR9's description, rounded.
MEDIAN_FWHM: dict[Region, tuple[float, float, float]] = {"S": (1.29, 1.18, 1.11), "N": (1.61, 1.47, 1.01)}
_FWHM_SCATTER = 0.09
_FWHM_STEP = 0.02
_MOFFAT_BETA = 3.2
# Scattered light: a wide, weak halo around the core (our approximation of the wings that bright stars show).
_HALO_SHARE, _HALO_FWHM, _HALO_BETA = 0.035, 5.0, 2.0
FIBRE_RADIUS = 0.75  # arcsec: DESI Collaboration (2022)

_WAVENUMBER_STEP = 2 * np.pi / (GRID * PIXEL_SCALE)
# Moves a profile from the transform's origin to the middle of the grid, which lies between the four central pixels.
_TO_MIDDLE = np.exp(
    -1j * np.pi * (GRID - 1) * (scipy.fft.rfftfreq(GRID)[None, :] + scipy.fft.fftfreq(GRID)[:, None])
).astype(np.complex64)


@dataclass(frozen=True)
class PointSpread:
    """One point spread function.

    Args:
        transform: (GRID, GRID // 2 + 1), Fourier transform on the grid, 1 at the origin.
        fibre: (GRID, GRID), the share of light at each pixel that enters a fibre at the centre.
        sharpness: sum of the squared pixels of the image of a point of unit flux.
    """

    transform: np.ndarray
    fibre: np.ndarray
    sharpness: float


def draw_fwhm(region: Region, rng: np.random.Generator) -> tuple[float, float, float]:
    """Seeing in g, r, z (arcsec), log-normal, in steps of 0.02 so that few kernels serve many images."""
    drawn = np.array(MEDIAN_FWHM[region]) * np.exp(rng.normal(0, _FWHM_SCATTER, 3))
    g, r, z = (round(round(value / _FWHM_STEP) * _FWHM_STEP, 2) for value in drawn.tolist())
    return g, r, z


def transform_of(profile: galsim.GSObject) -> np.ndarray:
    """The Fourier transform of a centrally symmetric GalSim profile: (GRID, GRID // 2 + 1) float32."""
    plane = galsim.ImageCF(galsim.BoundsI(-GRID // 2, GRID // 2, -GRID // 2, GRID // 2), scale=_WAVENUMBER_STEP)
    drawn = profile.drawKImage(image=plane).array.real
    return scipy.fft.ifftshift(drawn[:-1, GRID // 2 :], axes=0)


def to_middle(transform: np.ndarray) -> np.ndarray:
    """The image of a profile, (GRID, GRID) with the profile in the middle, from its Fourier transform."""
    return scipy.fft.irfft2(transform * _TO_MIDDLE, s=(GRID, GRID))


def blur(scene: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Convolve (GRID, GRID) with a point spread function's transform."""
    return scipy.fft.irfft2(scipy.fft.rfft2(scene) * transform, s=scene.shape)


@lru_cache(maxsize=256)
def point_spread(fwhm: float) -> PointSpread:
    """Moffat (1969) core with a faint halo; the pixel is part of the seeing as measured on images."""
    core = galsim.Moffat(beta=_MOFFAT_BETA, fwhm=fwhm)
    halo = galsim.Moffat(beta=_HALO_BETA, fwhm=_HALO_FWHM)
    profile = (1 - _HALO_SHARE) * core + _HALO_SHARE * halo
    transform = transform_of(profile)
    sharpness = float((to_middle(transform) ** 2).sum())
    return PointSpread(transform, blur(fibre_aperture(), transform), sharpness)


@cache
def fibre_aperture() -> np.ndarray:
    """(GRID, GRID) float32, the share of each pixel's area inside the fibre at the centre."""
    fine, near = 16, 8
    offset = (np.arange(near * fine) + 0.5 - near * fine / 2) * (PIXEL_SCALE / fine)
    inside = np.hypot(offset[None, :], offset[:, None]) < FIBRE_RADIUS
    aperture = np.zeros((GRID, GRID), np.float32)
    middle = slice((GRID - near) // 2, (GRID + near) // 2)
    aperture[middle, middle] = inside.reshape(near, fine, near, fine).mean((1, 3))
    return aperture
