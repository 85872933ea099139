"""Stars and gas of the mock survey: the built-in grid is physical, and BC03 is read right where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.mock import stellar_grids
from shards.mock.bruzual_charlot import _rebin, find_grid_folder
from shards.mock.grid_axes import WAVELENGTH, air_to_vacuum
from shards.mock.photometry import band_flux, magnitude
from shards.mock.star_formation import (
    AGES,
    IN_RATE,
    RATE_TIME,
    add_burst,
    delayed,
    delayed_timescale,
    exponential_burst,
)
from shards.mock.stellar_grids import load_stellar_grid

needs_bc03 = pytest.mark.skipif(find_grid_folder() is None, reason="the extra 'stellar' is not installed")
GRIDS = ["builtin", pytest.param("bc03", marks=needs_bc03)]


def colour(light: np.ndarray) -> float:
    fluxes = magnitude(band_flux(WAVELENGTH, light, "S"))
    return float(fluxes[0] - fluxes[1])


def line(lines: np.ndarray, grid: stellar_grids.StellarGrid, wavelength: float) -> float:
    return float(lines[np.argmin(np.abs(grid.tables.line_wavelength - wavelength))])


def test_histories_form_all_their_mass() -> None:
    for history in (exponential_burst(10, 0.5), delayed(8, 3), add_burst(delayed(8, 3), 0.05, 0.5)):
        assert history.sum() == pytest.approx(1)
        assert (history >= 0).all()
    assert (exponential_burst(5, 1.0)[AGES > 6e9] == 0).all()


@pytest.mark.parametrize(("duration", "log_rate"), [(9.0, -11.0), (9.0, -10.0), (4.0, -9.4)])
def test_timescale_gives_the_rate_asked_for(duration: float, log_rate: float) -> None:
    history = delayed(duration, delayed_timescale(duration, log_rate))
    assert np.log10(history[IN_RATE].sum() / RATE_TIME) == pytest.approx(log_rate, abs=0.12)


@pytest.mark.parametrize("name", GRIDS)
def test_populations_redden_and_fade_with_age_and_metals(name: str) -> None:
    grid = load_stellar_grid(name)  # type: ignore[arg-type]
    young, old = exponential_burst(0.3, 0.1), exponential_burst(11, 0.3)
    young_light, young_left = grid.population(young, 0.0)
    old_light, old_left = grid.population(old, 0.0)
    assert colour(young_light) < 0.2 < 0.7 < colour(old_light) < 0.9
    assert colour(grid.population(old, -0.7)[0]) < colour(old_light) < colour(grid.population(old, 0.3)[0])
    visual = np.searchsorted(WAVELENGTH, 5500.0)
    assert young_light[visual] > 10 * old_light[visual]
    assert 0.4 < old_left < 0.5 < young_left < 0.85


@pytest.mark.parametrize("name", GRIDS)
def test_emission_lines(name: str) -> None:
    grid = load_stellar_grid(name)  # type: ignore[arg-type]
    steady = delayed(0.2, 100.0)
    rate = steady[AGES < 1.05e7].sum() / 1.1e7
    solar, poor = grid.nebula(steady, 0.0, -3.0), grid.nebula(steady, -0.5, -2.8)
    # Kennicutt & Evans (2012): log SFR = log L(H-alpha) - 41.27; grids differ by their stars.
    assert line(solar, grid, 6564.6) / (rate * 10**41.27 / 3.828e33) == pytest.approx(1, abs=0.6)
    assert line(solar, grid, 6564.6) / line(solar, grid, 4862.7) == pytest.approx(2.9, abs=0.2)
    assert line(solar, grid, 5008.2) / line(solar, grid, 4960.3) == pytest.approx(2.98, abs=0.1)
    assert line(solar, grid, 6585.3) > 1.5 * line(poor, grid, 6585.3) * line(solar, grid, 6564.6) / line(
        poor, grid, 6564.6
    )
    assert line(poor, grid, 5008.2) / line(poor, grid, 4862.7) > line(solar, grid, 5008.2) / line(solar, grid, 4862.7)
    assert grid.nebula(exponential_burst(11, 0.3), 0.0, -3.0).max() < 1e-6 * line(solar, grid, 6564.6)


def test_rebinning_conserves_light() -> None:
    wavelength = np.linspace(1500, 12000, 4000)
    ages = np.concatenate([[0.0], np.geomspace(1e5, 2e10, 300)])
    slope = (wavelength / 5000)[None, :] * np.ones((len(ages), 1))
    rebinned = _rebin(wavelength, ages, slope)
    expected = WAVELENGTH / 5000
    assert rebinned.shape == (len(AGES), len(WAVELENGTH))
    np.testing.assert_allclose(rebinned, np.tile(expected, (len(AGES), 1)), rtol=5e-4)  # air against vacuum: 3e-4


def test_air_to_vacuum() -> None:
    np.testing.assert_allclose(air_to_vacuum(np.array([5006.84, 6562.80])), [5008.24, 6564.61], atol=0.02)


@needs_bc03
def test_builtin_colours_are_near_bc03() -> None:
    builtin, bc03 = load_stellar_grid("builtin"), load_stellar_grid("bc03")
    for history, metals in (
        (exponential_burst(11, 0.3), 0.1),
        (delayed(9, 3), -0.1),
        (delayed(8, 20), -0.3),
        (exponential_burst(1, 0.1), 0.0),
    ):
        ours, theirs = builtin.population(history, metals), bc03.population(history, metals)
        assert colour(ours[0]) == pytest.approx(colour(theirs[0]), abs=0.12)
        assert ours[1] == pytest.approx(theirs[1], abs=0.03)


@needs_bc03
def test_damaged_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_stellar_grid.cache_clear()
    fresh = load_stellar_grid("bc03")
    (cached,) = (tmp_path / "astroclip-dist").iterdir()
    cached.write_bytes(cached.read_bytes()[:1000])
    load_stellar_grid.cache_clear()
    again = load_stellar_grid("bc03")
    np.testing.assert_array_equal(fresh.tables.light, again.tables.light)
    assert cached.stat().st_size > 1e6
    load_stellar_grid.cache_clear()
