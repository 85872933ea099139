"""Where on the sky: the survey's northern and southern footprints, and the Milky Way's dust there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shards.mock.photometry import Region

_NORTH_SHARE = 0.30
# DR9 joins BASS/MzLS and DECaLS at this declination in the northern galactic cap (Dey et al. 2019).
_JOIN_DEC = 32.375
_NORTH_DEC, _SOUTH_DEC = (_JOIN_DEC, 82.0), (-18.0, _JOIN_DEC)
_MIN_LATITUDE = 22.0
_GALACTIC_POLE = (192.859, 27.128)  # ra, dec, J2000


@dataclass(frozen=True)
class Position:
    """ra, dec in degrees (J2000); E(B-V) in mag; region N (BASS/MzLS) or S (DECam)."""

    ra: float
    dec: float
    ebv: float
    region: Region


def draw_position(rng: np.random.Generator) -> Position:
    """Uniform on the footprint: declination limits, and away from the Milky Way's plane.

    E(B-V) is log-normal about 0.022 / sin |b|, our approximation of Schlegel et al. (1998) at high latitude.
    """
    region: Region = "N" if rng.random() < _NORTH_SHARE else "S"
    low, high = np.sin(np.deg2rad(_NORTH_DEC if region == "N" else _SOUTH_DEC))
    pole_ra, pole_dec = np.deg2rad(_GALACTIC_POLE)
    while True:
        ra, dec = rng.uniform(0, 2 * np.pi), np.arcsin(rng.uniform(low, high))
        sin_latitude = np.sin(dec) * np.sin(pole_dec) + np.cos(dec) * np.cos(pole_dec) * np.cos(ra - pole_ra)
        in_cap = sin_latitude > 0 or region == "S"
        if in_cap and abs(sin_latitude) > np.sin(np.deg2rad(_MIN_LATITUDE)):
            break
    ebv = 0.022 / abs(sin_latitude) * 10 ** rng.normal(0, 0.15)
    return Position(float(np.rad2deg(ra)), float(np.rad2deg(dec)), float(ebv), region)
