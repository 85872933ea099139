"""The galaxies that there are, and which of them the survey sees: redshift, mass, star formation, metals, dust."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from shards.mock.cosmology import cosmology_table
from shards.mock.star_formation import IN_RATE, add_burst, delayed, delayed_timescale, exponential_burst

Morphology = Literal["elliptical", "lenticular", "spiral", "barred_spiral", "edge_on", "irregular", "merger"]

# Galaxy stellar mass function at z < 0.06: double Schechter of Baldry et al. (2012); phi* (1/Mpc3) and alpha.
_LOG_M_STAR = 10.66
_SCHECHTER = ((3.96e-3, -0.35), (0.79e-3, -1.47))
_LOG_MASS_RANGE = (7.8, 12.0)
# Candidates are drawn down to this estimated magnitude; the estimate's error is well within the margin to 20.
_CANDIDATE_LIMIT = 21.1
# Bright galaxies are rarer than useful: each magnitude towards the bright end is favoured by this many dex (compare
# Stein et al. 2021, who sample the survey uniformly in magnitude).
_BRIGHT_PREFERENCE = 0.40
_EDGE_ON_COS = 0.22
# Median stellar metallicity (log10 Z / Zsun) at log10 mass: Gallazzi et al. (2005), table 2.
_GALLAZZI_MASS = (8.91, 9.11, 9.31, 9.51, 9.72, 9.91, 10.11, 10.31, 10.51, 10.72, 10.91, 11.11, 11.31, 11.51, 11.91)
_GALLAZZI_METALS = (-0.60, -0.61, -0.65, -0.61, -0.52, -0.41, -0.23, -0.11, -0.01, 0.04, 0.07, 0.10, 0.12, 0.13, 0.15)


@dataclass(frozen=True)
class Galaxy:
    """What a galaxy is, before anybody looks at it.

    Args:
        redshift: cosmological.
        log_mass: log10 of the stellar mass left today (Msun).
        quiescent: it has left the main sequence.
        morphology: visual class; ``edge_on`` is a disc of any kind seen from its side.
        bulge_fraction: share of the stellar mass.
        cos_inclination: of the disc; 1 is face-on.
        bulge_history, disc_history: (ages,), fractions of the formed mass.
        bulge_log_metallicity, disc_log_metallicity: log10 Z / Zsun.
        nebular_attenuation: A_V (mag) in front of the young, line-emitting gas.
        log_ionisation: log10 U of that gas.
        velocity_dispersion: km/s.
    """

    redshift: float
    log_mass: float
    quiescent: bool
    morphology: Morphology
    bulge_fraction: float
    cos_inclination: float
    bulge_history: np.ndarray
    disc_history: np.ndarray
    bulge_log_metallicity: float
    disc_log_metallicity: float
    nebular_attenuation: float
    log_ionisation: float
    velocity_dispersion: float


def quiescent_fraction(log_mass: np.ndarray, redshift: np.ndarray) -> np.ndarray:
    """Peng et al. (2010), mass quenching; the rise of its mass scale with redshift is ours."""
    return 1 - np.exp(-(10 ** (0.80 * (log_mass - 10.56 - 0.35 * redshift))))


def main_sequence(log_mass: float, cosmic_age: float) -> float:
    """log10 SFR (Msun/yr) of star-forming galaxies: Speagle et al. (2014), eq. 28; ``cosmic_age`` in Gyr."""
    return (0.84 - 0.026 * cosmic_age) * log_mass - (6.51 - 0.11 * cosmic_age)


def mass_metallicity(log_mass: float) -> float:
    """Median stellar log10 Z / Zsun: Gallazzi et al. (2005), table 2."""
    return float(np.interp(log_mass, _GALLAZZI_MASS, _GALLAZZI_METALS))


def nebular_attenuation(log_mass: float) -> float:
    """A_V of the ionised gas: A_Halpha of Garn & Best (2010) times 4.05 / 3.33 (Calzetti et al. 2000)."""
    x = np.clip(log_mass, 8.5, 11.5) - 10
    return float(np.polyval([-0.09, 0.11, 0.77, 0.91], x) * 4.05 / 3.33)


@cache
def _candidates() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cells of (redshift, log mass, quiescent) and the running sum of their probabilities."""
    table = cosmology_table()
    redshift, log_mass = np.meshgrid(table.redshift, np.arange(*_LOG_MASS_RANGE, 0.05), indexing="ij")
    mass = 10 ** (log_mass - _LOG_M_STAR)
    density = np.exp(-mass) * sum(phi * mass ** (alpha + 1) for phi, alpha in _SCHECHTER)
    density = density * table.differential_volume[:, None]
    quiescent = quiescent_fraction(log_mass, redshift)
    magnitude = np.stack([_estimated_magnitude(log_mass, redshift, kind) for kind in (False, True)])
    weight = np.stack([density * (1 - quiescent), density * quiescent])
    weight *= (magnitude < _CANDIDATE_LIMIT) * 10 ** (-_BRIGHT_PREFERENCE * (np.maximum(magnitude, 15.0) - 20))
    cells = np.nonzero(weight)
    running = np.cumsum(weight[cells])
    return redshift[cells[1:]], log_mass[cells[1:]], cells[0] == 1, running / running[-1]


def _estimated_magnitude(log_mass: np.ndarray, redshift: np.ndarray, quiescent: bool) -> np.ndarray:
    """A rough z magnitude from mean mass-to-light ratios; only decides which candidates are worth a spectrum."""
    log_mass_to_light = (0.35 if quiescent else -0.05) + 0.12 * (log_mass - 10.5)
    absolute = 4.65 - 2.5 * (log_mass - log_mass_to_light)
    table = cosmology_table()
    modulus = 5 * np.log10(np.interp(redshift, table.redshift, table.luminosity_distance) * 1e5)
    return absolute + modulus + (0.0 if quiescent else 0.6) * redshift - 0.5


def draw_galaxy(rng: np.random.Generator) -> Galaxy:
    """One galaxy of the universe, bright enough to be perhaps in the survey."""
    redshifts, log_masses, quiescents, running = _candidates()
    cell = int(np.searchsorted(running, rng.random()))
    half_step = 0.5 * (cosmology_table().redshift[1] - cosmology_table().redshift[0])
    redshift = float(redshifts[cell] + rng.uniform(-half_step, half_step))
    log_mass = float(log_masses[cell] + rng.uniform(-0.025, 0.025))
    return _draw_properties(redshift, log_mass, bool(quiescents[cell]), rng)


def _draw_properties(redshift: float, log_mass: float, quiescent: bool, rng: np.random.Generator) -> Galaxy:
    cosmic_age = cosmology_table().at(cosmology_table().age, redshift)
    log_ssfr = _draw_specific_rate(log_mass, cosmic_age, quiescent, rng)
    cos_inclination = float(rng.random())
    bulge_fraction = _draw_bulge_fraction(log_mass, log_ssfr, quiescent, rng)
    morphology = _draw_morphology(log_mass, quiescent, bulge_fraction, cos_inclination, rng)
    if morphology == "elliptical":
        bulge_fraction = 1.0
    elif morphology == "irregular":
        bulge_fraction = 0.0
    elif morphology == "merger":
        bulge_fraction = min(bulge_fraction, 0.6)
    if morphology == "merger" and not quiescent:
        log_ssfr += abs(rng.normal(0.2, 0.2))  # interaction lifts star formation: Ellison et al. (2013)

    # Formation times rise with mass (downsizing: Gallazzi et al. 2005); their wide scatter is ours.
    bulge_start = cosmic_age * float(np.clip(rng.normal(0.72 + 0.08 * (log_mass - 10.5), 0.18), 0.25, 0.88))
    bulge_history = exponential_burst(bulge_start, rng.uniform(0.2, 0.8))
    if quiescent:  # what little gas is left: the labels' specific rate, half of it being per mass left
        bulge_history = bulge_history * (1 - 5e7 * 10**log_ssfr)
        bulge_history[IN_RATE] += 5e7 * 10**log_ssfr / IN_RATE.sum()
    disc_start = cosmic_age * float(np.clip(rng.normal(0.60 + 0.06 * (log_mass - 10.5), 0.22), 0.15, 0.88))
    # The disc forms all new stars, so its own rate is higher; 0.25 dex: the rate is per mass left, not per mass formed.
    disc_rate = log_ssfr - np.log10(max(1 - bulge_fraction, 0.03)) - 0.25
    # No steady disc forms faster than 2 / duration: one that does began later.
    disc_start = max(min(disc_start, 1.5e-9 / 10**disc_rate), 0.5)
    disc_history = delayed(disc_start, delayed_timescale(disc_start, float(disc_rate)))
    if not quiescent and rng.random() < 0.15:
        disc_history = add_burst(disc_history, float(rng.uniform(0.01, 0.08)), float(10 ** rng.uniform(-0.7, 0.2)))

    log_metallicity = mass_metallicity(log_mass) + rng.normal(0, 0.27)
    if not quiescent:  # the fundamental relation: Mannucci et al. (2010)
        log_metallicity -= 0.12 * float(np.clip(log_ssfr + 10.2, -1, 1.5))
    attenuation = 0.25
    if not quiescent:  # more dust with mass, on inclined sight lines (Battisti et al. 2017), where more stars form
        attenuation = nebular_attenuation(log_mass) * (0.70 + 0.60 * (1 - cos_inclination))
    attenuation *= 10 ** rng.normal(0, 0.22) * float(
        np.clip(1 + 0.5 * (log_ssfr + 10.2), 0.3, 1.3) if not quiescent else 1
    )
    disc_log_metallicity = float(np.clip(log_metallicity - 0.10, -1.6, 0.6))
    # U falls with metallicity (Perez-Montero 2014) and rises with the specific rate (Kaasinen et al. 2018).
    log_ionisation = -3.1 - 0.5 * (disc_log_metallicity + 0.1) + 0.25 * (log_ssfr + 10) + rng.normal(0, 0.1)
    # Faber-Jackson-like: sigma ~ M^0.28 (Gallazzi et al. 2006); discs rotate within the fibre at 0.8 of that.
    dispersion = 10 ** (2.2 + 0.28 * (log_mass - 10.6)) * (1.0 if quiescent else 0.8)
    return Galaxy(
        redshift=redshift,
        log_mass=log_mass,
        quiescent=quiescent,
        morphology=morphology,
        bulge_fraction=bulge_fraction,
        cos_inclination=cos_inclination,
        bulge_history=bulge_history,
        disc_history=disc_history,
        bulge_log_metallicity=float(np.clip(log_metallicity + 0.08, -1.6, 0.6)),
        disc_log_metallicity=disc_log_metallicity,
        nebular_attenuation=float(min(attenuation, 4.0)),
        log_ionisation=float(np.clip(log_ionisation, -3.9, -2.0)),
        velocity_dispersion=float(np.clip(dispersion, 40, 330)),
    )


def _draw_specific_rate(log_mass: float, cosmic_age: float, quiescent: bool, rng: np.random.Generator) -> float:
    """log10 sSFR (1/yr): main sequence with 0.3 dex scatter, a tenth in the green valley below it, or quiescent."""
    if quiescent:
        return float(np.clip(rng.normal(-12.0, 0.35), -13, -11.2))
    log_ssfr = main_sequence(log_mass, cosmic_age) - log_mass + rng.normal(0, 0.3)
    if rng.random() < 0.10:
        log_ssfr -= rng.uniform(0.5, 1.2)
    return float(np.clip(log_ssfr, -12, -8.5))


def _draw_bulge_fraction(log_mass: float, log_ssfr: float, quiescent: bool, rng: np.random.Generator) -> float:
    """Rises with mass and falls with the specific rate: trends of Lang et al. (2014) and Bluck et al. (2014)."""
    if quiescent:
        return float(np.clip(rng.normal(0.70 + 0.08 * (log_mass - 10.7), 0.18), 0.2, 0.95))
    return float(np.clip(rng.normal(0.12 + 0.16 * (log_mass - 10.0) - 0.12 * (log_ssfr + 10), 0.11), 0.0, 0.75))


def _draw_morphology(
    log_mass: float, quiescent: bool, bulge_fraction: float, cos_inclination: float, rng: np.random.Generator
) -> Morphology:
    """Shares: mergers about 4 % (Lotz et al. 2011); bars in 0.3 of discs, more in redder ones (Masters et al. 2011)."""
    merger, irregular, bar = rng.random(3)
    if merger < 0.04 and log_mass > 9:
        return "merger"
    if quiescent and bulge_fraction > 0.72:
        return "elliptical"
    if not quiescent and irregular < np.clip((9.6 - log_mass) / 0.8, 0, 0.8):
        return "irregular"
    if cos_inclination < _EDGE_ON_COS:
        return "edge_on"
    if quiescent:
        return "lenticular"
    return "barred_spiral" if log_mass > 9.4 and bar < 0.25 + 0.35 * bulge_fraction else "spiral"
