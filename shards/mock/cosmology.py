"""Distances, ages and volumes of the Planck 2018 cosmology (Planck Collaboration VI 2020), tabulated once a process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from astropy.cosmology import Planck18

# Redshifts of the survey: below, peculiar velocities and galaxies larger than the image; above, nothing has mag_z < 20.
REDSHIFT_RANGE = (0.01, 1.0)


@dataclass(frozen=True)
class CosmologyTable:
    """Columns over ``redshift``: Mpc, Gyr, comoving volume per redshift and steradian (Mpc3), kpc per arcsec."""

    redshift: np.ndarray
    luminosity_distance: np.ndarray
    age: np.ndarray
    differential_volume: np.ndarray
    kpc_per_arcsec: np.ndarray

    def at(self, column: np.ndarray, redshift: float) -> float:
        return float(np.interp(redshift, self.redshift, column))


@cache
def cosmology_table() -> CosmologyTable:
    redshift = np.linspace(*REDSHIFT_RANGE, 500)
    return CosmologyTable(
        redshift=redshift,
        luminosity_distance=Planck18.luminosity_distance(redshift).value,
        age=Planck18.age(redshift).value,
        differential_volume=Planck18.differential_comoving_volume(redshift).value,
        kpc_per_arcsec=1 / Planck18.arcsec_per_kpc_proper(redshift).value,
    )
