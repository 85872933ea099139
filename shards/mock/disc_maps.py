"""Where a disc shines: maps of its old stars, its young stars and its dust, before the atmosphere blurs them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.special import k1

from shards.mock.structure import Structure

_EDGE_ON_RATIO = 0.30
_EXTENT_SCALES = 6.0
# Vertical scale height over radial scale length of discs seen from the side: de Grijs (1998).
_HEIGHT_RATIO = 0.19


@dataclass(frozen=True)
class DiscMaps:
    """Square maps about the galaxy's centre.

    Args:
        old, young: (n, n) float32, light of old and young stars per pixel, each summing to 1.
        dust: (n, n) float32, optical depth in V of lanes, or None.
        oversampling: pixels of the map across one pixel of the image.
    """

    old: np.ndarray
    young: np.ndarray
    dust: np.ndarray | None
    oversampling: int


@dataclass(frozen=True)
class _Plane:
    """Coordinates in the galaxy's plane (unit: scale length), and on the sky along its axes (arcsec)."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    along: np.ndarray
    across: np.ndarray


def make_disc_maps(structure: Structure, pixel_scale: float, max_size: int, rng: np.random.Generator) -> DiscMaps:
    """Draw the maps of one disc.

    Args:
        pixel_scale: arcsec per image pixel.
        max_size: greatest width in image pixels; larger discs are cut there.
        rng: places the patches and the knots.
    """
    reach = _EXTENT_SCALES * structure.disc_scale
    if structure.companion is not None:
        reach = max(reach, np.hypot(*structure.companion[:2]) + 5 * structure.companion[2])
    half = min(int(np.ceil(reach / pixel_scale)) + 4, max_size // 2)
    oversampling = int(np.clip(150 // half, 1, 6))
    plane = _make_plane(structure, half * oversampling, pixel_scale / oversampling)
    patches = _patches(structure, plane, rng)
    if structure.axis_ratio < _EDGE_ON_RATIO:
        old, young, dust = _edge_on(structure, plane, patches)
    else:
        old, young, dust = _inclined(structure, plane, patches)
    if structure.clumps:
        _add_clumps(young, structure, plane, pixel_scale / oversampling, rng)
    if structure.tails:
        tails = _tidal_tails(structure, plane)
        old += tails
        young += 0.7 * tails
    if structure.companion is not None:
        old, young = _add_companion(old, young, structure, plane)
    # Fade to the map's edge: tails that end in a straight line would give the map away.
    edge = np.float32(half * pixel_scale)
    fade = 0.5 - 0.5 * np.tanh((np.hypot(plane.along, plane.across) - 0.86 * edge) / (0.07 * edge))
    old, young = old * fade, young * fade
    return DiscMaps(old / old.sum(), young / young.sum(), dust if structure.dust > 0.05 else None, oversampling)


def _make_plane(structure: Structure, half: int, pixel: float) -> _Plane:
    offset = ((np.arange(2 * half, dtype=np.float32) - half + 0.5) * pixel).astype(np.float32)
    cosine, sine = np.float32(np.cos(structure.position_angle)), np.float32(np.sin(structure.position_angle))
    along = offset[None, :] * cosine + offset[:, None] * sine
    across = -offset[None, :] * sine + offset[:, None] * cosine
    scale = np.float32(structure.disc_scale)
    x, y = along / scale, across / (scale * np.float32(structure.axis_ratio))
    return _Plane(x, y, np.sqrt(x * x + y * y) + np.float32(1e-3), np.arctan2(y, x), along, across)


def _patches(structure: Structure, plane: _Plane, rng: np.random.Generator) -> np.ndarray | None:
    """Log-normal patches, mean about 1: noise smoothed in (log radius, angle) and sheared along the spiral.

    Differential rotation draws star-forming patches out into short trailing arms: flocculent discs (Elmegreen 1981).
    """
    if structure.patchiness == 0:
        return None
    rows, columns = 64, 128
    noise = gaussian_filter(rng.standard_normal((rows, columns)).astype(np.float32), (1.3, 1.9), mode="wrap")
    noise = np.exp(structure.patchiness * noise / noise.std()) * np.float32(np.exp(-0.5 * structure.patchiness**2))
    log_radius = np.log(np.maximum(plane.radius, 0.15))
    shear = 0.0 if structure.arms is None else structure.arms.sense / np.tan(structure.arms.pitch)
    row = (log_radius + 2.0) * np.float32(15.0)
    column = (plane.angle - np.float32(shear) * log_radius) * np.float32(columns / (2 * np.pi))
    return _bilinear(noise, row, column)


def _bilinear(field: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Values of a periodic field between its nodes; both of its sides are powers of two."""
    rows, columns = field.shape
    row_low, column_low = np.floor(row), np.floor(column)
    down, right = row - row_low, column - column_low
    i, j = row_low.astype(np.int32) & (rows - 1), column_low.astype(np.int32) & (columns - 1)
    i_next, j_next = (i + 1) & (rows - 1), (j + 1) & (columns - 1)
    top = field[i, j] * (1 - right) + field[i, j_next] * right
    bottom = field[i_next, j] * (1 - right) + field[i_next, j_next] * right
    return top * (1 - down) + bottom * down


def _inclined(
    structure: Structure, plane: _Plane, patches: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exponential disc (Freeman 1970) with arms, bar and ring; the young disc is wider (inside-out growth)."""
    radius = plane.radius
    old = np.exp(-radius)
    young = np.exp(-radius / np.float32(1.25))
    dust = np.exp(-radius / np.float32(1.6))
    if structure.lopsidedness:
        side = 1 + np.float32(structure.lopsidedness) * np.tanh(plane.x)
        old, young = old * (0.5 + 0.5 * side), young * side
    arms = structure.arms
    inner = max(structure.bar_length / structure.disc_scale, 0.35)
    if arms is not None and arms.number:
        winding = arms.sense / np.tan(arms.pitch)
        phase = arms.number * (plane.angle - np.float32(winding) * np.log(radius)) - np.float32(arms.phase)
        crest = np.exp(np.float32(2.4) * (np.cos(phase) - 1))
        grown = 1 / (1 + np.exp(-(radius - np.float32(inner)) * 7))
        contrast = np.float32(arms.contrast)
        young = young * (0.15 + 0.35 * (1 - grown) + contrast * crest * grown)
        old = old * (1 + np.float32(0.30) * contrast * (crest - 0.3) * grown)
        # Dust lies on the arms' inner, concave side, a little ahead of the young stars.
        dust = dust * (0.25 + 1.5 * np.exp(np.float32(4.0) * (np.cos(phase - np.float32(0.7)) - 1)) * grown)
    if patches is not None:
        young = young * patches
        old = old * (0.75 + 0.25 * patches)
        dust = dust * np.sqrt(patches)
    if structure.bar_length:
        bar = _bar(structure, plane)
        old = old + bar
        young = young * (1 - 0.75 * np.minimum(bar / 0.6, 1)) + np.float32(0.12) * bar
    if structure.ring_radius:
        centre = structure.ring_radius / structure.disc_scale
        ring = np.exp(-0.5 * ((radius - np.float32(centre)) / np.float32(0.13 * centre + 0.05)) ** 2)
        ring *= np.float32(structure.ring_strength * np.exp(-centre))
        old, young = old + 0.7 * ring, young + 1.8 * ring
    # The near half of an inclined disc has its dust in front of the bulge, the far half behind it.
    tilt = np.float32(1 - structure.axis_ratio)
    near = 0.5 + 0.5 * np.tanh(plane.y)
    return old, young, dust * np.float32(structure.dust) * (0.35 + 1.3 * tilt * near)


def _bar(structure: Structure, plane: _Plane) -> np.ndarray:
    """A flat-topped ellipse, 0.3 as wide as long: Aguerri et al. (2009); brightness as Gadotti (2011)'s mean."""
    cosine, sine = np.float32(np.cos(structure.bar_angle)), np.float32(np.sin(structure.bar_angle))
    length = np.float32(structure.bar_length / structure.disc_scale)
    along = (plane.x * cosine + plane.y * sine) / length
    across = (-plane.x * sine + plane.y * cosine) / (np.float32(0.26) * length)
    profile = np.exp(-((along * along) ** 2) - across * across)
    return np.float32(1.1) * profile * (0.5 + 0.5 * np.exp(-along * along))


def _edge_on(
    structure: Structure, plane: _Plane, patches: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Disc from the side: (R/h) K1(R/h) sech2(z/z0), van der Kruit & Searle (1981); a lane of dust in its middle."""
    along = np.abs(plane.along) / np.float32(structure.disc_scale) + np.float32(0.02)
    height = structure.disc_scale * _HEIGHT_RATIO * (structure.axis_ratio / 0.2)
    z = np.clip(plane.across / np.float32(height), -20, 20)
    radial = (along * k1(along)).astype(np.float32)
    old = radial / np.cosh(z) ** 2
    young = np.exp(-along / np.float32(1.2)) / np.cosh(np.float32(1.8) * z) ** 2
    warp = np.float32(0.0) if patches is None else np.float32(0.10) * (patches - 1)
    # Seen not quite from the side, the lane lies a little off the middle.
    off = np.float32(1.2 * np.sqrt(max(structure.axis_ratio**2 - 0.04, 0.0)) / 0.2)
    dust = np.exp(-along / np.float32(2.2) - 0.5 * ((z - off + warp) / np.float32(0.45)) ** 2)
    if patches is not None:
        young = young * (0.5 + 0.5 * patches)
    return old, young, np.float32(structure.dust) * dust


def _add_clumps(young: np.ndarray, structure: Structure, plane: _Plane, pixel: float, rng: np.random.Generator) -> None:
    """Knots of star formation, on the arms if any: exponential luminosities, sizes of 0.05 to 0.15 scale lengths."""
    half = young.shape[0] // 2
    cosine, sine = np.cos(structure.position_angle), np.sin(structure.position_angle)
    arms = structure.arms
    edge_on = structure.axis_ratio < _EDGE_ON_RATIO
    for radius, spread, choice, brightness, size in rng.random((structure.clumps, 5)):
        distance = -np.log(1 - radius * 0.95) * 1.1 + 0.3
        angle = 2 * np.pi * choice
        if arms is not None and arms.number:
            arm = int(choice * arms.number) / arms.number
            start = arms.phase / arms.number
            angle = arms.sense / np.tan(arms.pitch) * np.log(distance) + start + 2 * np.pi * arm + 0.8 * (spread - 0.5)
        x = distance * np.cos(angle) * structure.disc_scale
        y = distance * np.sin(angle) * structure.disc_scale * (0.05 if edge_on else structure.axis_ratio)
        sigma = max((0.05 + 0.10 * size) * structure.disc_scale, 0.8 * pixel)
        column, row = half + (x * cosine - y * sine) / pixel - 0.5, half + (x * sine + y * cosine) / pixel - 0.5
        reach = int(3.2 * sigma / pixel) + 2
        rows = slice(max(0, int(row) - reach), max(0, int(row) + reach))
        columns = slice(max(0, int(column) - reach), max(0, int(column) + reach))
        down = (np.arange(rows.start, min(rows.stop, 2 * half), dtype=np.float32) - row) * (pixel / sigma)
        right = (np.arange(columns.start, min(columns.stop, 2 * half), dtype=np.float32) - column) * (pixel / sigma)
        peak = -np.log(1 - 0.98 * brightness) * 1.5 * np.exp(-distance / 1.6)
        young[rows, columns] += peak * np.exp(-0.5 * down * down)[:, None] * np.exp(-0.5 * right * right)[None, :]


def _tidal_tails(structure: Structure, plane: _Plane) -> np.ndarray:
    """Two broad open arms beyond the disc, of unequal length: after Toomre & Toomre (1972)."""
    sense = 1 if structure.lopsidedness > 0 else -1
    phase = plane.angle - np.float32(sense * 1.1) * np.log(plane.radius)
    one = np.exp(np.float32(5.0) * (np.cos(phase - np.float32(structure.bar_angle)) - 1) - plane.radius / 3.5)
    two = np.exp(np.float32(7.0) * (np.cos(phase - np.float32(structure.bar_angle + 2.8)) - 1) - plane.radius / 2.2)
    outside = 1 / (1 + np.exp(-(plane.radius - np.float32(1.4)) * 4))
    return np.float32(structure.tails) * (one + 0.8 * two) * outside


def _add_companion(
    old: np.ndarray, young: np.ndarray, structure: Structure, plane: _Plane
) -> tuple[np.ndarray, np.ndarray]:
    """The partner in a merger: a smaller disc with a share of the light, and a faint bridge to it."""
    if structure.companion is None:
        return old, young
    x, y, scale, share = structure.companion
    right, up = (plane.along - np.float32(x)) / scale, (plane.across - np.float32(y)) / scale
    partner = np.exp(-np.sqrt(right * right + 1.6 * up * up + 0.3 * right * up + 0.02))
    length = float(np.hypot(x, y))
    position = np.clip((plane.along * x + plane.across * y) / length**2, 0, 1)
    away = np.hypot(plane.along - position * x, plane.across - position * y) / np.float32(0.35 * length)
    bridge = np.exp(-away * away) * np.float32(0.10)
    partner = partner + bridge * partner.max()
    partner /= partner.sum()
    return old + partner * (old.sum() * share / (1 - share)), young + partner * (young.sum() * share / (1 - share))
