"""The stellar grid that needs no extra package: two measured galaxy spectra, hot stars, absorption and emission lines.

Continuum: the elliptical and the Scd spectrum of Coleman, Wu & Weedman (1980) as shipped with GalSim stand for an old
and for an intermediate population; stars younger than 10 Myr shine as a power law. Between these anchors log light is
linear in log effective age t (Z/Zsun): the age-metallicity degeneracy (Worthey 1994; his exponent is 3/2, 1 fits the
g-r and r-z of Bruzual & Charlot 2003 better). CWW's spectra are sampled at 40 angstrom: the strong absorption lines
are put in by hand. All anchors, and the lines' depths, are our approximations; the colours of single populations agree
with BC03's to about 0.1 mag between 0.2 and 2.5 solar metallicities.
"""

from __future__ import annotations

from pathlib import Path

import galsim
import numpy as np

from shards.mock.emission_recipe import LINE_WAVELENGTH, LOG_IONISATION, recipe_lines
from shards.mock.grid_axes import WAVELENGTH, GridTables
from shards.mock.star_formation import LOG_AGES

_LOG_METALLICITY = np.array([-1.7, -1.0, -0.7, -0.4, 0.0, 0.4, 0.7])
# log10 effective age (yr) at which the three continua stand: hot stars, CWW Scd, CWW E.
_ANCHOR_LOG_AGES = (6.7, 8.95, 9.95)
_HOT_SLOPE = -2.7
# Fall of the light below 3700 A: of hot stars, and on top of it of A stars 0.4 Gyr old.
_HOT_BALMER_JUMP = 0.10
_BALMER_JUMP = 0.45
# The emission lines of the Scd's own gas, smeared over CWW's wide samples: cut out.
_SMEARED_EMISSION = ((3640.0, 3800.0), (4890.0, 5080.0), (6480.0, 6660.0))
# log10 of Lsun / angstrom at 5500 A per solar mass formed, at log10 age: Bruzual & Charlot (2003), solar, rounded.
_BRIGHTNESS = ((6.0, 6.5, 7.0, 8.0, 9.0, 10.0), (-2.33, -1.96, -2.33, -3.08, -3.78, -4.71))
_SURVIVING = ((6.0, 7.0, 8.0, 9.0, 10.0), (1.0, 0.87, 0.73, 0.60, 0.46))
# Metals dim a population by as much as this power of Z ages it (against 1 for colours).
_BRIGHTNESS_EXPONENT = 0.5

# (vacuum wavelength, equivalent width in A of an old solar population, Gaussian sigma in A).
_METAL_LINES = (
    (3582.0, 3.0, 8.0),
    (3736.0, 3.5, 8.0),
    (3831.0, 4.5, 9.0),
    (3934.8, 7.0, 6.0),
    (3969.6, 6.0, 6.0),
    (4046.9, 1.5, 3.5),
    (4064.7, 1.2, 3.5),
    (4144.9, 1.5, 4.0),
    (4217.0, 2.0, 7.0),
    (4227.9, 1.2, 3.0),
    (4272.9, 1.0, 3.5),
    (4305.6, 4.5, 9.0),
    (4326.9, 1.0, 3.5),
    (4384.8, 2.2, 4.5),
    (4405.8, 1.2, 4.0),
    (4456.0, 1.0, 4.0),
    (4532.0, 1.8, 6.0),
    (4669.0, 2.0, 8.0),
    (4922.0, 1.0, 4.5),
    (4958.9, 0.9, 4.5),
    (5015.0, 2.5, 9.0),
    (5110.0, 1.8, 9.0),
    (5168.7, 1.8, 4.0),
    (5174.1, 2.0, 3.5),
    (5185.0, 1.8, 3.5),
    (5208.0, 1.0, 3.5),
    (5271.0, 2.6, 5.5),
    (5329.5, 2.2, 5.0),
    (5372.9, 0.7, 3.5),
    (5407.3, 1.4, 5.0),
    (5458.0, 0.7, 4.0),
    (5528.0, 0.6, 3.5),
    (5589.0, 0.9, 4.0),
    (5710.0, 0.8, 4.5),
    (5784.0, 0.7, 4.5),
    (5891.6, 1.9, 3.0),
    (5897.6, 1.5, 3.0),
    (6124.0, 0.6, 4.0),
    (6163.0, 0.9, 4.5),
    (6190.0, 2.0, 16.0),
    (6496.9, 1.0, 4.5),
    (7080.0, 4.0, 22.0),
    (7150.0, 3.0, 18.0),
    (8185.5, 0.6, 4.0),
    (8197.1, 0.8, 4.0),
    (8500.4, 1.4, 4.5),
    (8544.4, 3.6, 5.0),
    (8664.5, 2.9, 5.0),
    (8809.2, 0.7, 4.0),
)
# Equivalent widths at their greatest, in A stars 0.4 Gyr old.
_BALMER_LINES = (
    (6564.6, 6.5, 8.0),
    (4862.7, 9.0, 9.0),
    (4341.7, 9.0, 9.0),
    (4102.9, 9.0, 9.0),
    (3971.2, 8.0, 8.0),
    (3890.2, 7.0, 7.0),
    (3836.5, 6.0, 6.0),
    (3798.9, 5.0, 5.0),
    (3771.7, 4.0, 4.5),
)


def make_builtin_grid() -> GridTables:
    """The tables; a fraction of a second."""
    light = np.array([[_single_population(log_age, metals) for log_age in LOG_AGES] for metals in _LOG_METALLICITY])
    surviving = np.interp(LOG_AGES, *_SURVIVING)
    return GridTables(
        log_metallicity=_LOG_METALLICITY,
        light=light.astype(np.float32),
        surviving=np.tile(surviving, (len(_LOG_METALLICITY), 1)),
        line_wavelength=LINE_WAVELENGTH,
        log_ionisation=LOG_IONISATION,
        lines=recipe_lines(_LOG_METALLICITY),
    )


def _measured_continuum(galaxy: str) -> np.ndarray:
    path = Path(galsim.meta_data.share_dir) / "SEDs" / f"CWW_{galaxy}_ext.sed"
    wavelength, flux = np.loadtxt(path, unpack=True)
    if galaxy == "Scd":
        stellar = np.logical_and.reduce([(wavelength < start) | (wavelength > end) for start, end in _SMEARED_EMISSION])
        wavelength, flux = wavelength[stellar], flux[stellar]
    return np.interp(WAVELENGTH, wavelength, flux) / np.interp(5500.0, wavelength, flux)


def _hot_stars() -> np.ndarray:
    return (WAVELENGTH / 5500.0) ** _HOT_SLOPE * np.exp(-_HOT_BALMER_JUMP * _below_balmer_limit())


def _below_balmer_limit() -> np.ndarray:
    return 1 / (1 + np.exp((WAVELENGTH - 3720) / 18))


def _log_anchors() -> np.ndarray:
    return np.log(np.array([_hot_stars(), _measured_continuum("Scd"), _measured_continuum("E")]))


_LOG_CONTINUA = _log_anchors()


def _absorption(lines: tuple[tuple[float, float, float], ...], strength: float) -> np.ndarray:
    """(wavelengths,), optical depth: each line's equivalent width is ``strength`` times its listed one."""
    depth = np.zeros_like(WAVELENGTH)
    for centre, width, sigma in lines:
        near = slice(*np.searchsorted(WAVELENGTH, (centre - 6 * sigma, centre + 6 * sigma)))
        profile = np.exp(-0.5 * ((WAVELENGTH[near] - centre) / sigma) ** 2)
        depth[near] += strength * width / (np.sqrt(2 * np.pi) * sigma) * profile
    return depth


def _single_population(log_age: float, log_metallicity: float) -> np.ndarray:
    """(wavelengths,), Lsun / angstrom per solar mass formed."""
    colour_age = log_age + log_metallicity * float(np.clip((log_age - 7) / 2, 0, 1))
    place = float(np.interp(colour_age, _ANCHOR_LOG_AGES, (0, 1, 2)))
    if colour_age > _ANCHOR_LOG_AGES[-1]:
        place = 2 + 0.6 * (colour_age - _ANCHOR_LOG_AGES[-1])
    low = min(int(place), 1)
    log_light = _LOG_CONTINUA[low] + (place - low) * (_LOG_CONTINUA[low + 1] - _LOG_CONTINUA[low])
    metals = float(np.clip((colour_age - 8.3) / 1.6, 0, 1.3))
    balmer = float(np.exp(-0.5 * ((log_age - 8.6) / 0.55) ** 2)) + 0.15
    log_light = log_light - _absorption(_METAL_LINES, metals) - _absorption(_BALMER_LINES, balmer)
    log_light = log_light - _BALMER_JUMP * balmer * _below_balmer_limit()
    brightness_age = log_age + _BRIGHTNESS_EXPONENT * log_metallicity * float(np.clip((log_age - 7) / 2, 0, 1))
    brightness = float(np.interp(brightness_age, *_BRIGHTNESS))
    if brightness_age > 10:
        brightness = _BRIGHTNESS[1][-1] - 0.93 * (brightness_age - 10)
    return 10**brightness * np.exp(log_light)
