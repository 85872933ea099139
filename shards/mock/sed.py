"""A galaxy's light: bulge, old disc and young disc with its gas, each with its own stars, metals and dust."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shards.mock.attenuation import calzetti, milky_way
from shards.mock.cosmology import cosmology_table
from shards.mock.grid_axes import WAVELENGTH
from shards.mock.population import Galaxy
from shards.mock.star_formation import AGES, IN_RATE, IS_YOUNG, RATE_TIME
from shards.mock.stellar_grids import StellarGrid

BULGE, OLD_DISC, YOUNG_DISC = 0, 1, 2
# A_V of each component over that of the nebulae: stars see 0.44 of the gas's reddening (Calzetti et al. 2000), young
# ones most of it (Charlot & Fall 2000), bulges little (ours).
_DUST_SHARE = np.array([0.15, 0.40, 0.70])
_CURVE = calzetti(WAVELENGTH)
_SOLAR_LUMINOSITY = 3.828e33  # erg/s
_MEGAPARSEC = 3.0857e24  # cm
_FLUX_UNIT = 1e-17  # erg/s/cm2


@dataclass(frozen=True)
class ObservedLight:
    """All light of one galaxy as it arrives, before atmosphere and instrument.

    Args:
        wavelength: (wavelengths,), observed frame, vacuum, angstrom.
        components: (3, wavelengths), stars of bulge, old disc, young disc; 1e-17 erg/s/cm2/A.
        line_wavelength: (lines,), observed frame, vacuum, angstrom.
        line_flux: (lines,), 1e-17 erg/s/cm2; they shine where the young disc does.
    """

    wavelength: np.ndarray
    components: np.ndarray
    line_wavelength: np.ndarray
    line_flux: np.ndarray


@dataclass(frozen=True)
class Properties:
    """The true values of the labels: log10 Msun, log10 Z/Zsun (mass-weighted), Gyr (mass-weighted), log10 1/yr."""

    log_stellar_mass: float
    log_metallicity: float
    age_gyr: float
    log_ssfr: float


def emit(galaxy: Galaxy, grid: StellarGrid) -> tuple[np.ndarray, np.ndarray, Properties]:
    """Light in the rest frame, behind the galaxy's own dust.

    Returns:
        (3, wavelengths) Lsun / angstrom; (lines,) Lsun; the true properties.
    """
    old, young = galaxy.disc_history * ~IS_YOUNG, galaxy.disc_history * IS_YOUNG
    bulge_light, bulge_left = grid.population(galaxy.bulge_history, galaxy.bulge_log_metallicity)
    old_light, old_left = grid.population(old, galaxy.disc_log_metallicity)
    young_light, young_left = grid.population(young, galaxy.disc_log_metallicity)
    mass = 10**galaxy.log_mass
    bulge_formed = mass * galaxy.bulge_fraction / bulge_left
    disc_formed = mass * (1 - galaxy.bulge_fraction) / (old_left + young_left)
    formed = np.array([bulge_formed, disc_formed, disc_formed])
    dust = np.exp(-0.4 * np.log(10) * galaxy.nebular_attenuation * _DUST_SHARE[:, None] * _CURVE)
    light = np.stack([bulge_light, old_light, young_light]) * formed[:, None] * dust
    lines = disc_formed * grid.nebula(young, galaxy.disc_log_metallicity, galaxy.log_ionisation)
    lines *= 10 ** (-0.4 * galaxy.nebular_attenuation * calzetti(grid.tables.line_wavelength))

    formed_by_age = bulge_formed * galaxy.bulge_history + disc_formed * galaxy.disc_history
    metals = bulge_formed * 10**galaxy.bulge_log_metallicity + disc_formed * 10**galaxy.disc_log_metallicity
    rate = float((formed_by_age * IN_RATE).sum()) / RATE_TIME
    return (
        light,
        lines,
        Properties(
            log_stellar_mass=galaxy.log_mass,
            log_metallicity=float(np.log10(metals / (bulge_formed + disc_formed))),
            age_gyr=float((formed_by_age * AGES).sum() / formed_by_age.sum() / 1e9),
            log_ssfr=float(np.log10(rate / mass + 1e-14)),
        ),
    )


def observe(light: np.ndarray, lines: np.ndarray, grid: StellarGrid, redshift: float, ebv: float) -> ObservedLight:
    """Redshift, dilute by distance, and redden by the Milky Way's dust.

    Args:
        light, lines: as :func:`emit` gives them.
        ebv: E(B-V) of the Milky Way in this direction, mag.
    """
    table = cosmology_table()
    distance = table.at(table.luminosity_distance, redshift) * _MEGAPARSEC
    dilution = _SOLAR_LUMINOSITY / (4 * np.pi * distance**2) / _FLUX_UNIT
    wavelength = WAVELENGTH * (1 + redshift)
    line_wavelength = grid.tables.line_wavelength * (1 + redshift)
    return ObservedLight(
        wavelength=wavelength,
        components=light * (dilution / (1 + redshift)) * 10 ** (-0.4 * ebv * milky_way(wavelength)),
        line_wavelength=line_wavelength,
        line_flux=lines * dilution * 10 ** (-0.4 * ebv * milky_way(line_wavelength)),
    )
