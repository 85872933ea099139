"""Positions as unit vectors, their motion between epochs, and the HEALPix pixels near whose borders nothing is lost.

Unit vectors are computed once a row and then copied: a pair's distance has the same bits in whichever pixel it is
looked at, so that which neighbour is nearest never depends on how the sky was cut.
"""

from __future__ import annotations

import numpy as np
from astropy import units
from astropy_healpix import HEALPix, nside_to_pixel_resolution

ARCSEC_PER_RAD = 180.0 * 3600.0 / np.pi
_MAS_PER_RAD = 1000.0 * ARCSEC_PER_RAD
_FINEST_ORDER = 24
# A pixel with its eight neighbours covers all within 1/1.6 of the pixel's mean size around it; 4 leaves room.
_FINE_PIXEL_PER_MARGIN = 4.0


def unit_vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """(n, 3) float64 unit vectors of (n,) right ascensions and declinations in degrees."""
    longitude, latitude = np.radians(ra), np.radians(dec)
    across = np.cos(latitude)
    return np.stack([across * np.cos(longitude), across * np.sin(longitude), np.sin(latitude)], axis=1)


def move(
    ra: np.ndarray, dec: np.ndarray, pm_ra_cosdec: np.ndarray, pm_dec: np.ndarray, years: np.ndarray
) -> np.ndarray:
    """Unit vectors after so many years of straight motion without radial velocity (as ``SkyCoord.apply_space_motion``
    with zero radial velocity, for which the distance cancels).

    Args:
        ra, dec: (n,) deg.
        pm_ra_cosdec, pm_dec: (n,) proper motion, mas/yr, that of right ascension times cos(dec).
        years: (n,) Julian years.

    Returns:
        (n, 3) float64.
    """
    longitude, latitude = np.radians(ra), np.radians(dec)
    east = np.stack([-np.sin(longitude), np.cos(longitude), np.zeros_like(longitude)], axis=1)
    north = np.stack(
        [-np.sin(latitude) * np.cos(longitude), -np.sin(latitude) * np.sin(longitude), np.cos(latitude)], axis=1
    )
    angle = (years / _MAS_PER_RAD)[:, None]
    moved = unit_vectors(ra, dec) + angle * (pm_ra_cosdec[:, None] * east + pm_dec[:, None] * north)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def chord(separation_arcsec: float) -> float:
    """The straight distance on the unit sphere of a separation."""
    return 2.0 * float(np.sin(separation_arcsec / ARCSEC_PER_RAD / 2.0))


def separation_arcsec(squared_chord: np.ndarray) -> np.ndarray:
    """(n,) separations of squared chords."""
    return 2.0 * np.arcsin(np.sqrt(squared_chord) / 2.0) * ARCSEC_PER_RAD


def fine_order(margin_arcsec: float) -> int:
    """The finest HEALPix order of which a pixel and its neighbours cover a margin around every place of the pixel."""
    for order in range(_FINEST_ORDER, 0, -1):
        if nside_to_pixel_resolution(1 << order).to_value(units.arcsec) >= _FINE_PIXEL_PER_MARGIN * margin_arcsec:
            return order
    return 0


class Sky:
    """The sky in pixels of one fine order (nested), and which coarser pixels a row belongs to or lies close to.

    Args:
        order: HEALPix order of the fine pixels; see :func:`fine_order`.
    """

    def __init__(self, order: int) -> None:
        self.order = order
        self._grid = HEALPix(nside=1 << order, order="nested")

    def pixels(self, vectors: np.ndarray) -> np.ndarray:
        """(n,) int64 fine pixels of (n, 3) unit vectors."""
        longitude = np.arctan2(vectors[:, 1], vectors[:, 0])
        # Not arcsin(z): near the poles it would lose half of the digits.
        latitude = np.arctan2(vectors[:, 2], np.hypot(vectors[:, 0], vectors[:, 1]))
        return self._grid.lonlat_to_healpix(longitude * units.rad, latitude * units.rad).astype(np.int64)

    def coarsen(self, pixels: np.ndarray, order: int) -> np.ndarray:
        """The pixels of a coarser order that hold some fine ones."""
        return pixels >> (2 * (self.order - order))

    def copies(self, pixels: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
        """Every coarse pixel that each row must be seen from: its own, and those of the fine pixels around its own.

        Args:
            pixels: (n,) fine pixels of the rows.
            order: of the coarse pixels.

        Returns:
            Two (m,) int64 arrays, m >= n: coarse pixel, and the row it holds; no couple twice.
        """
        own = self.coarsen(pixels, order)
        border = np.flatnonzero(self._at_border(pixels, order))
        # (8, k); -1 (a NaN on the way) at the places of the sky where a pixel has only seven around it.
        with np.errstate(invalid="ignore"):
            around = self._grid.neighbours(pixels[border]).astype(np.int64)
        neighbour = np.where(around >= 0, self.coarsen(around, order), own[border])
        couples = np.stack([neighbour.ravel(), np.tile(border, len(around))], axis=1)
        couples = np.unique(couples[couples[:, 0] != own[couples[:, 1]]], axis=0)
        return np.concatenate([own, couples[:, 0]]), np.concatenate([np.arange(len(pixels)), couples[:, 1]])

    def _at_border(self, pixels: np.ndarray, order: int) -> np.ndarray:
        """(n,) bool: fine pixels on the edge of their coarse pixel. The bits of a nested number within it are those
        of x and y, alternating: on the edge all bits of one of them are 0 or all are 1."""
        bits = 2 * (self.order - order)
        within = pixels & ((1 << bits) - 1)
        x_bits = sum(1 << bit for bit in range(0, bits, 2))
        x, y = within & x_bits, within & (x_bits << 1)
        return (x == 0) | (x == x_bits) | (y == 0) | (y == x_bits << 1)
