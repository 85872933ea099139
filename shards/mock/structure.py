"""Shape of a galaxy on the sky: sizes, axis ratios, arms, bar, rings, companion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shards.mock.cosmology import cosmology_table
from shards.mock.population import Galaxy

# Axis ratio of a disc seen from its side: Sandage et al. (1970).
DISC_THICKNESS = 0.20


@dataclass(frozen=True)
class Arms:
    """Logarithmic spiral arms.

    Args:
        number: 2 to 4; 0 is flocculent: no arms but sheared patches.
        pitch: angle (rad) between arm and circle.
        sense: +1 or -1, which way they trail.
        phase: rad; a crest lies at angle = ln(radius / scale length) / tan(pitch) x sense + phase / number.
        contrast: of the young light, arm to between arms (about 1 to 4).
    """

    number: int
    pitch: float
    sense: int
    phase: float
    contrast: float


@dataclass(frozen=True)
class Structure:
    """Everything that the image needs to draw one galaxy; lengths in arcsec, angles in rad.

    Args:
        bulge_radius: half-light radius; ``bulge_sersic`` its index, ``bulge_axis_ratio`` minor over major.
        disc_scale: exponential scale length.
        position_angle: of the major axis, from x to y.
        axis_ratio: of the disc on the sky.
        arms: None for smooth discs.
        bar_length: half-length; 0 is none; ``bar_angle`` in the disc's plane.
        ring_radius: 0 is none; ``ring_strength`` relative to the disc there.
        patchiness: rms of the young light's log-normal patches.
        clumps: number of star-forming knots.
        dust: optical depth in V of the lanes at the centre.
        lopsidedness: fraction by which one side of the disc outshines the other.
        companion: (x, y, scale length, share of the disc's light) of a merging galaxy, arcsec; None otherwise.
        tails: brightness of tidal tails relative to the disc.
    """

    bulge_radius: float
    bulge_sersic: float
    bulge_axis_ratio: float
    disc_scale: float
    position_angle: float
    axis_ratio: float
    arms: Arms | None
    bar_length: float
    bar_angle: float
    ring_radius: float
    ring_strength: float
    patchiness: float
    clumps: int
    dust: float
    lopsidedness: float
    companion: tuple[float, float, float, float] | None
    tails: float


def late_type_radius(log_mass: float, redshift: float) -> float:
    """Median half-light radius along the major axis (kpc): 5.5 at 10^10.5 Msun, as M^0.22, rounded from the late types
    of Lange et al. (2015); evolution (1 + z)^-0.75, van der Wel et al. (2014)."""
    return float(5.5 * 10 ** (0.22 * (log_mass - 10.5)) * (1 + redshift) ** -0.75)


def early_type_radius(log_mass: float, redshift: float) -> float:
    """Median half-light radius (kpc): Shen et al. (2003), early types; evolution van der Wel et al. (2014)."""
    return float(2.88e-6 * 10 ** (0.56 * log_mass) * (1 + redshift) ** -1.48)


def draw_structure(galaxy: Galaxy, rng: np.random.Generator) -> Structure:
    """The shape of one galaxy; sizes scatter by about 0.3 in the logarithm (Shen et al. 2003)."""
    table = cosmology_table()
    kpc = table.at(table.kpc_per_arcsec, galaxy.redshift)
    kind, mass, bulge_fraction = galaxy.morphology, galaxy.log_mass, galaxy.bulge_fraction
    bulge_mass = mass + np.log10(max(bulge_fraction, 0.02))
    bulge_radius = early_type_radius(bulge_mass, galaxy.redshift) * np.exp(rng.normal(0, 0.30)) / kpc
    # A disc of half-light radius R has scale length R / 1.678; the sizes are of the whole galaxy.
    disc_scale = late_type_radius(mass, galaxy.redshift) * np.exp(rng.normal(0, 0.33)) / kpc / 1.678
    if kind == "lenticular":
        disc_scale *= 0.8
    spiral = not galaxy.quiescent and kind in ("spiral", "barred_spiral", "edge_on", "merger")
    bar_length = float(rng.uniform(0.9, 1.5)) * disc_scale if _has_bar(galaxy, rng) else 0.0
    bar_angle = float(rng.uniform(0, np.pi))
    ringed = rng.random() < (0.45 if bar_length and kind != "edge_on" else 0.12 if kind == "lenticular" else 0.03)
    thickness = DISC_THICKNESS if kind != "irregular" else 0.45
    axis_ratio = np.sqrt(galaxy.cos_inclination**2 * (1 - thickness**2) + thickness**2)
    return Structure(
        bulge_radius=float(np.clip(bulge_radius, 0.12, 9.0)),
        bulge_sersic=_draw_sersic(kind == "elliptical", bulge_fraction, mass, rng),
        bulge_axis_ratio=float(
            rng.uniform(0.5, 1.0) if kind == "elliptical" else max(axis_ratio, rng.uniform(0.6, 0.9))
        ),
        disc_scale=float(np.clip(disc_scale, 0.15, 9.0)),
        position_angle=float(rng.uniform(0, np.pi)),
        axis_ratio=float(axis_ratio),
        arms=_draw_arms(bulge_fraction, bar_length / disc_scale, bar_angle, rng) if spiral else None,
        bar_length=float(bar_length),
        bar_angle=bar_angle,
        ring_radius=float((bar_length or rng.uniform(1.8, 2.8) * disc_scale) if ringed else 0.0),
        ring_strength=float(rng.uniform(0.4, 1.2)),
        patchiness=0.0
        if galaxy.quiescent
        else float(rng.uniform(0.9, 1.4) if kind == "irregular" else rng.uniform(0.35, 0.8)),
        clumps=0 if galaxy.quiescent else int(rng.poisson(26 if kind in ("irregular", "merger") else 18)),
        dust=_draw_dust(galaxy, rng),
        lopsidedness=float(np.clip(rng.normal(0.0, 0.5 if kind in ("irregular", "merger") else 0.12), -0.8, 0.8)),
        companion=_draw_companion(disc_scale, bulge_radius, bulge_fraction, rng) if kind == "merger" else None,
        tails=float(rng.uniform(0.15, 0.5)) if kind == "merger" else 0.0,
    )


def _has_bar(galaxy: Galaxy, rng: np.random.Generator) -> bool:
    hidden = rng.random() < 0.3
    if galaxy.morphology in ("edge_on", "lenticular", "irregular"):
        return bool(hidden and galaxy.morphology != "edge_on")
    return galaxy.morphology == "barred_spiral"


def _draw_sersic(elliptical: bool, bulge_fraction: float, log_mass: float, rng: np.random.Generator) -> float:
    """Index in steps of 0.5 (GalSim tabulates each once): 4 for massive ellipticals, 1 to 2 for small bulges."""
    if elliptical:
        index = rng.normal(3.6 + 1.0 * (log_mass - 10.8), 0.6)
    else:
        index = rng.normal(1.3 + 2.5 * bulge_fraction, 0.4)
    return float(np.clip(round(2 * index) / 2, 1.0, 5.0))


def _draw_arms(bulge_fraction: float, bar_scales: float, bar_angle: float, rng: np.random.Generator) -> Arms:
    """A third flocculent (Elmegreen & Elmegreen 1982); the pitch opens as the bulge shrinks (Yu & Ho 2019).

    Args:
        bar_scales: half-length of the bar in scale lengths; two arms leave from its ends. 0 is none.
    """
    number = 2 if bar_scales else int(rng.choice([0, 2, 3, 4], p=[0.33, 0.42, 0.15, 0.10]))
    pitch = float(np.deg2rad(np.clip(rng.normal(22 - 14 * bulge_fraction, 4), 8, 35)))
    sense = int(rng.choice([-1, 1]))
    phase = float(rng.uniform(0, 2 * np.pi))
    if bar_scales:
        phase = 2 * (bar_angle - sense / np.tan(pitch) * np.log(bar_scales))
    return Arms(number, pitch, sense, phase, contrast=float(rng.uniform(1.2, 3.2)))


def _draw_dust(galaxy: Galaxy, rng: np.random.Generator) -> float:
    if galaxy.morphology in ("elliptical", "irregular"):
        return 0.0
    amount = rng.uniform(0.2, 0.6) if galaxy.quiescent else rng.uniform(0.4, 1.0) * galaxy.nebular_attenuation
    return float(min(amount * (3.0 if galaxy.morphology == "edge_on" else 1.3), 5.0))


def _draw_companion(
    disc_scale: float, bulge_radius: float, bulge_fraction: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    size = max(disc_scale if bulge_fraction < 0.8 else bulge_radius, 0.3)
    distance, angle = rng.uniform(1.6, 3.8) * size, rng.uniform(0, 2 * np.pi)
    share = float(rng.uniform(0.12, 0.40))
    return float(distance * np.cos(angle)), float(distance * np.sin(angle)), float(0.55 * size * share**0.3), share
