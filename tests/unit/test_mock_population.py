"""The mock population obeys the relations that it is drawn from, and its colours tell redshift only so well."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsRegressor

from shards.mock.catalogue import LABEL_NOISE, REDSHIFT_NOISE, catalogue_entry
from shards.mock.cosmology import cosmology_table
from shards.mock.galaxy import BRIGHT_LIMIT, FAINT_LIMIT, ObservedGalaxy, select_galaxy
from shards.mock.image import DEPTH, sky_sigma
from shards.mock.point_spread import MEDIAN_FWHM
from shards.mock.population import main_sequence, mass_metallicity, quiescent_fraction
from shards.mock.randomness import Subject, stream
from shards.mock.stellar_grids import load_stellar_grid

COUNT = 1200


@pytest.fixture(scope="module")
def population() -> list[ObservedGalaxy]:
    grid = load_stellar_grid("builtin")
    return [select_galaxy(31, index, grid) for index in range(COUNT)]


@pytest.fixture(scope="module")
def catalogue(population: list[ObservedGalaxy]) -> dict[str, np.ndarray]:
    rows = []
    for index, one in enumerate(population):
        region = one.position.region
        fwhm = MEDIAN_FWHM[region]
        sigma = sky_sigma(np.array(DEPTH[region]), fwhm, region)
        rng = stream(31, index, Subject.CATALOGUE)
        rows.append(catalogue_entry(one.galaxy, one.properties, one.position, one.fluxes, sigma, fwhm, rng))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_selection_limits(catalogue: dict[str, np.ndarray]) -> None:
    assert catalogue["true_mag_z"].max() < FAINT_LIMIT
    assert catalogue["true_mag_z"].min() > BRIGHT_LIMIT
    assert catalogue["true_mag_z"].max() > FAINT_LIMIT - 0.1


def test_main_sequence(population: list[ObservedGalaxy]) -> None:
    table = cosmology_table()
    offsets = []
    for one in population:
        galaxy = one.galaxy
        if not galaxy.quiescent and galaxy.morphology != "merger":
            rate = one.properties.log_ssfr + galaxy.log_mass
            offsets.append(rate - main_sequence(galaxy.log_mass, table.at(table.age, galaxy.redshift)))
    # A tenth lies in the green valley below; bursts and the finite choice of timescales widen the 0.3 dex.
    assert abs(np.median(offsets)) < 0.15
    assert 0.2 < np.subtract(*np.percentile(offsets, [84, 16])) / 2 < 0.5


def test_metallicity_rises_with_mass(catalogue: dict[str, np.ndarray]) -> None:
    mass, metals = catalogue["true_log_stellar_mass"], catalogue["true_log_metallicity"]
    medians = [np.median(metals[(mass > low) & (mass <= low + 0.5)]) for low in (9.0, 9.5, 10.0, 10.5)]
    assert (np.diff(medians) > 0).all()
    expected = [mass_metallicity(value) for value in mass]
    assert abs(np.median(metals - expected)) < 0.15


def test_quiescent_share_rises_with_mass(population: list[ObservedGalaxy]) -> None:
    mass = np.array([one.galaxy.log_mass for one in population])
    quiescent = np.array([one.galaxy.quiescent for one in population])
    shares = [quiescent[(mass > low) & (mass <= low + 0.75)].mean() for low in (9.0, 9.75, 10.5)]
    assert (np.diff(shares) > 0.05).all()
    assert (
        quiescent_fraction(np.array(12.0), np.array(0.1))
        > 0.95
        > 0.1
        > quiescent_fraction(np.array(9.0), np.array(0.1))
    )


def test_quiescent_galaxies_are_red_old_and_passive(
    population: list[ObservedGalaxy], catalogue: dict[str, np.ndarray]
) -> None:
    quiescent = np.array([one.galaxy.quiescent for one in population])
    near = np.abs(catalogue["true_redshift"] - 0.15) < 0.05
    colour = catalogue["true_mag_g"] - catalogue["true_mag_r"]
    assert np.median(colour[quiescent & near]) > np.median(colour[~quiescent & near]) + 0.15
    assert np.median(catalogue["true_age_gyr"][quiescent]) > np.median(catalogue["true_age_gyr"][~quiescent]) + 1
    assert np.median(catalogue["true_log_ssfr"][quiescent]) < np.median(catalogue["true_log_ssfr"][~quiescent]) - 1


def test_no_galaxy_is_older_than_the_universe(catalogue: dict[str, np.ndarray]) -> None:
    table = cosmology_table()
    cosmic = np.interp(catalogue["true_redshift"], table.redshift, table.age)
    assert (catalogue["true_age_gyr"] < cosmic).all()


def test_every_morphology_occurs(catalogue: dict[str, np.ndarray]) -> None:
    names, counts = np.unique(catalogue["morphology"], return_counts=True)
    assert set(names) == {"elliptical", "lenticular", "spiral", "barred_spiral", "edge_on", "irregular", "merger"}
    assert counts.min() > 0.01 * COUNT
    assert (catalogue["bulge_fraction"][catalogue["morphology"] == "elliptical"] > 0.99).all()


def test_catalogue_is_the_truth_with_its_noise(catalogue: dict[str, np.ndarray]) -> None:
    for name, noise in LABEL_NOISE.items():
        error = catalogue[name] - catalogue[f"true_{name}"]
        assert error.std() == pytest.approx(noise, rel=0.12)
        assert abs(error.mean()) < 5 * noise / np.sqrt(COUNT)
    redshift_error = (catalogue["redshift"] - catalogue["true_redshift"]) / (1 + catalogue["true_redshift"])
    assert redshift_error.std() == pytest.approx(REDSHIFT_NOISE, rel=0.1)
    for band in "grz":
        error = catalogue[f"mag_{band}"] - catalogue[f"true_mag_{band}"]
        assert 0.025 < 1.4826 * np.median(np.abs(error)) < 0.15
        dereddened = 22.5 - 2.5 * np.log10(catalogue[f"flux_{band}"]) - catalogue[f"mag_{band}"]
        assert (dereddened > 0).all()


def test_footprint(catalogue: dict[str, np.ndarray]) -> None:
    north = catalogue["survey_region"] == "N"
    assert north.mean() == pytest.approx(0.3, abs=0.05)
    assert catalogue["dec"][north].min() > 32.3 > catalogue["dec"][~north].max() - 0.1
    assert ((catalogue["ra"] >= 0) & (catalogue["ra"] < 360)).all()
    assert 0.02 < np.median(catalogue["ebv"]) < 0.06


def test_colours_tell_redshift_but_not_all_of_it(catalogue: dict[str, np.ndarray]) -> None:
    """Photometric redshifts are good, not perfect; properties are harder: a mock must neither flatter nor starve."""
    colours = np.stack(
        [catalogue["mag_g"] - catalogue["mag_r"], catalogue["mag_r"] - catalogue["mag_z"], catalogue["mag_r"]], 1
    )
    colours = (colours - colours.mean(axis=0)) / colours.std(axis=0)
    train = COUNT * 3 // 4

    def explained(label: np.ndarray) -> float:
        model = KNeighborsRegressor(16, weights="distance").fit(colours[:train], label[:train])
        return float(model.score(colours[train:], label[train:]))

    assert 0.5 < explained(catalogue["redshift"]) < 0.85
    assert 0.1 < explained(catalogue["age_gyr"]) < 0.6
    assert 0.2 < explained(catalogue["log_ssfr"]) < 0.75
    assert 0.1 < explained(catalogue["log_metallicity"]) < 0.65
