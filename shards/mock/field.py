"""Everything else in the cut-out: faint galaxies, foreground stars, and the group that a massive galaxy lives in."""

from __future__ import annotations

import numpy as np

from shards.mock.photometry import Region
from shards.mock.point_spread import GRID, PIXEL_SCALE
from shards.mock.population import Galaxy

# Galaxies per square degree with r < 24.3 and the slope of their counts (dex per mag): Yasuda et al. (2001) and
# Capak et al. (2007), rounded. Stars: high-latitude counts.
_FAINT_LIMIT = 24.3
_GALAXIES_PER_DEGREE2, _GALAXY_SLOPE = 7.5e4, 0.34
_STARS_PER_DEGREE2, _STAR_SLOPE = 5.0e3, 0.18
_BRIGHTEST_STAR = 14.0
_CLEAR_RADIUS = 2.5  # arcsec around the target that stay free: no survey deblends closer pairs well


def draw_field(
    galaxy: Galaxy, target_flux: np.ndarray, member_flux: np.ndarray, region: Region, rng: np.random.Generator
) -> np.ndarray:
    """Draw the neighbours of one galaxy, not yet blurred.

    Args:
        target_flux: (3,), of the galaxy itself, nanomaggies.
        member_flux: (3,), colours of the galaxies in its group (its old stars').

    Returns:
        (3, GRID, GRID) float32, nanomaggies per pixel.
    """
    scene = np.zeros((3, GRID, GRID), np.float32)
    area = (GRID * PIXEL_SCALE / 3600) ** 2
    for _ in range(rng.poisson(_GALAXIES_PER_DEGREE2 * area)):
        _add_faint_galaxy(scene, rng)
    for _ in range(rng.poisson(_STARS_PER_DEGREE2 * area)):
        _add_star(scene, region, rng)
    richness = 0.25 + max(galaxy.log_mass - 10.4, 0) * (3.5 if galaxy.quiescent else 1.2)
    for _ in range(rng.poisson(richness)):
        _add_group_member(scene, float(target_flux[1]), member_flux, rng)
    return scene


def _magnitude(faintest: float, slope: float, brightest: float, rng: np.random.Generator) -> float:
    """From counts N(<m) ~ 10^(slope m)."""
    return max(faintest + np.log10(1 - rng.random()) / slope, brightest)


def _place(rng: np.random.Generator) -> tuple[float, float]:
    while True:
        x, y = rng.uniform(-GRID / 2, GRID / 2, 2) * PIXEL_SCALE
        if np.hypot(x, y) > _CLEAR_RADIUS:
            return float(x), float(y)


def _add_faint_galaxy(scene: np.ndarray, rng: np.random.Generator) -> None:
    """Colours: a red and a blue sequence, redder when brighter, as in the survey's own catalogues; sizes shrink."""
    magnitude = _magnitude(_FAINT_LIMIT, _GALAXY_SLOPE, 16.5, rng)
    red = rng.random() < np.clip(0.42 - 0.09 * (magnitude - 21), 0.12, 0.5)
    g_r, r_z = (
        (rng.normal(1.35, 0.30), rng.normal(0.95, 0.25)) if red else (rng.normal(0.60, 0.28), rng.normal(0.50, 0.25))
    )
    radius = 0.9 * 10 ** (-0.13 * (magnitude - 20)) * np.exp(rng.normal(0, 0.35))
    flux = 10 ** (0.4 * (22.5 - magnitude + np.array([-g_r, 0.0, r_z])))
    _add_profile(scene, flux, _place(rng), radius, 2.5 if red else 1.0, rng.uniform(0.25, 1.0), rng)


def _add_group_member(scene: np.ndarray, host: float, member_flux: np.ndarray, rng: np.random.Generator) -> None:
    """A satellite of the host's old-star colour, fainter than it; surface density falls as 1 / distance."""
    distance = _CLEAR_RADIUS + rng.uniform(0.5, 26)
    angle = rng.uniform(0, 2 * np.pi)
    place = (float(distance * np.cos(angle)), float(distance * np.sin(angle)))
    fainter = min(1.6 + rng.exponential(1.3), 6.0)
    red = rng.random() < 0.75
    tint = rng.normal(0, 0.05, 3) + (np.zeros(3) if red else np.array([-0.45, 0.0, 0.20]))
    flux = member_flux / member_flux[1] * host * 10 ** (-0.4 * (fainter + tint))
    radius = np.clip(1.8 * 10 ** (-0.2 * (22.5 - 2.5 * np.log10(flux[1]) - 17.5)), 0.25, 4.0)
    _add_profile(scene, flux, place, float(radius), 2.5 if red else 1.0, rng.uniform(0.3, 1.0), rng)


def _add_profile(
    scene: np.ndarray,
    flux: np.ndarray,
    place: tuple[float, float],
    radius: float,
    sersic: float,
    axis_ratio: float,
    rng: np.random.Generator,
) -> None:
    """A Sersic (1963) profile with its half-light radius (arcsec), softened within half a pixel."""
    exponent = 2 * sersic - 1 / 3  # Ciotti & Bertin (1999), leading terms
    half = int(np.clip(np.ceil((6.0 if sersic > 1.5 else 4.0) * radius / PIXEL_SCALE), 4, GRID // 2))
    column, row = ((value / PIXEL_SCALE + (GRID - 1) / 2) for value in place)
    rows = np.arange(max(0, round(row) - half), min(GRID, round(row) + half + 1))
    columns = np.arange(max(0, round(column) - half), min(GRID, round(column) + half + 1))
    angle = rng.uniform(0, np.pi)
    cosine, sine = np.cos(angle), np.sin(angle)
    dx, dy = (columns - column)[None, :].astype(np.float32), (rows - row)[:, None].astype(np.float32)
    along, across = dx * np.float32(cosine) + dy * np.float32(sine), dy * np.float32(cosine) - dx * np.float32(sine)
    scale = radius / PIXEL_SCALE
    squared = (along * along * np.float32(axis_ratio) + across * across / np.float32(axis_ratio) + 0.2) / scale**2
    profile = np.exp(np.float32(-exponent) * squared ** np.float32(0.5 / sersic))
    scene[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += (
        flux.astype(np.float32)[:, None, None] * (profile / profile.sum())[None]
    )


def _add_star(scene: np.ndarray, region: Region, rng: np.random.Generator) -> None:
    """A point on the stellar locus; DECam's brightest have the spikes of the telescope's spider, a diagonal cross."""
    magnitude = _magnitude(23.0, _STAR_SLOPE, _BRIGHTEST_STAR, rng)
    g_r = float(np.clip(rng.normal(0.6, 0.2) if rng.random() < 0.5 else rng.normal(1.45, 0.12), 0.1, 1.8))
    r_z = 0.55 * g_r + (rng.gamma(2.0, 0.25) if g_r > 1.3 else rng.normal(0, 0.05))
    flux = (10 ** (0.4 * (22.5 - magnitude + np.array([-g_r, 0.0, r_z])))).astype(np.float32)
    x, y = _place(rng)
    column, row = x / PIXEL_SCALE + (GRID - 1) / 2, y / PIXEL_SCALE + (GRID - 1) / 2
    left, low = int(np.clip(column, 0, GRID - 2)), int(np.clip(row, 0, GRID - 2))
    right_share, up_share = column - left, row - low
    share = np.outer([1 - up_share, up_share], [1 - right_share, right_share]).astype(np.float32)
    scene[:, low : low + 2, left : left + 2] += flux[:, None, None] * share
    length = int(GRID * 10 ** (0.2 * (13.0 - magnitude)) / 4)
    if length > 10 and region == "S":
        steps = np.arange(-length, length + 1)
        fade = (1 - np.abs(steps) / length).astype(np.float32) * np.float32(0.003 / length)
        for slope in (1, -1):
            inside = (
                (low + slope * steps >= 0) & (low + slope * steps < GRID) & (left + steps >= 0) & (left + steps < GRID)
            )
            at = steps[inside]
            scene[:, low + slope * at, left + at] += flux[:, None] * fade[inside]
