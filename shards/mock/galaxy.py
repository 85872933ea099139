"""One galaxy of the mock survey from its seed and index: population, light, image, spectrum, catalogue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shards.mock.attenuation import MILKY_WAY_COEFFICIENTS
from shards.mock.catalogue import catalogue_entry
from shards.mock.field import draw_field
from shards.mock.image import add_noise, blur_field, draw_depth, draw_galaxy_image, sky_sigma
from shards.mock.photometry import component_fluxes, magnitude
from shards.mock.point_spread import draw_fwhm
from shards.mock.population import Galaxy, draw_galaxy
from shards.mock.randomness import Subject, stream
from shards.mock.sed import OLD_DISC, ObservedLight, Properties, emit, observe
from shards.mock.sky import Position, draw_position
from shards.mock.spectrum import observe_spectrum
from shards.mock.stellar_grids import StellarGrid
from shards.mock.structure import Structure, draw_structure
from shards.sample import Sample

# The selection of the cross-matched sample of AstroCLIP (Parker et al. 2024): mag_z < 20, corrected for the
# Milky Way's dust. The bright limit leaves out what overflows a cut-out.
FAINT_LIMIT, BRIGHT_LIMIT = 20.0, 14.5


@dataclass(frozen=True)
class ObservedGalaxy:
    """A galaxy that the survey selects, before image and spectrum are made.

    Args:
        fluxes: (3 components, 3 bands), nanomaggies as observed.
    """

    galaxy: Galaxy
    properties: Properties
    position: Position
    light: ObservedLight
    fluxes: np.ndarray


@dataclass(frozen=True)
class Truth:
    """What no survey knows: the galaxy, its light, its image alone and without noise, its noiseless fibre spectrum.

    Args:
        image: (3, H, W), nanomaggies.
        spectrum: (7781,), 1e-17 erg/s/cm2/A.
        fibre_share: (3 components, 3 bands).
        sky_sigma: (3,), nanomaggies per pixel.
    """

    observed: ObservedGalaxy
    structure: Structure
    image: np.ndarray
    spectrum: np.ndarray
    fibre_share: np.ndarray
    sky_sigma: np.ndarray


def select_galaxy(seed: int, index: int, grid: StellarGrid) -> ObservedGalaxy:
    """Draw candidates until one is within the survey's limits in z."""
    rng = stream(seed, index, Subject.POPULATION)
    while True:
        galaxy, position = draw_galaxy(rng), draw_position(rng)
        light, lines, properties = emit(galaxy, grid)
        observed = observe(light, lines, grid, galaxy.redshift, position.ebv)
        fluxes = component_fluxes(observed, position.region)
        corrected = magnitude(fluxes[:, 2].sum()) - MILKY_WAY_COEFFICIENTS[2] * position.ebv
        if BRIGHT_LIMIT < corrected < FAINT_LIMIT:
            return ObservedGalaxy(galaxy, properties, position, observed, fluxes)


def galaxy_key(seed: int, index: int) -> str:
    return f"mock-{seed}-{index}"


def make_galaxy(seed: int, index: int, grid: StellarGrid) -> tuple[Sample, Truth]:
    """The sample of (seed, index), always the same, and the truth behind it."""
    observed = select_galaxy(seed, index, grid)
    galaxy, region, fluxes = observed.galaxy, observed.position.region, observed.fluxes
    rng = stream(seed, index, Subject.STRUCTURE)
    structure = draw_structure(galaxy, rng)
    fwhm = draw_fwhm(region, rng)
    sigma = sky_sigma(draw_depth(region, rng), fwhm, region)
    alone = draw_galaxy_image(structure, fluxes, galaxy.redshift, region, fwhm, rng)
    old_stars = fluxes[: OLD_DISC + 1].sum(axis=0)
    field = draw_field(galaxy, fluxes.sum(axis=0), old_stars, region, stream(seed, index, Subject.FIELD))
    scene = alone.flux + blur_field(field, fwhm)
    image = add_noise(scene, sigma, region, stream(seed, index, Subject.IMAGE_NOISE))
    spectrum = observe_spectrum(
        observed.light,
        alone.fibre_share,
        region,
        galaxy.velocity_dispersion,
        stream(seed, index, Subject.SPECTRUM_NOISE),
    )
    sample = Sample(
        key=galaxy_key(seed, index),
        image=image,
        spectrum=spectrum.flux,
        ivar=spectrum.ivar,
        metadata=catalogue_entry(
            galaxy, observed.properties, observed.position, fluxes, sigma, fwhm, stream(seed, index, Subject.CATALOGUE)
        ),
    )
    return sample, Truth(observed, structure, alone.flux, spectrum.noiseless, alone.fibre_share, sigma)
