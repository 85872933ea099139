"""k-NN regression and its measures against scikit-learn and worked examples."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import r2_score
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from astroclip_dist.evaluate.held_out import hold_out
from astroclip_dist.evaluate.knn import knn_regression, standardise
from astroclip_dist.evaluate.metrics import r2, r2_difference, r2_interval, redshift_errors


@pytest.mark.parametrize(("n", "m", "d", "k"), [(500, 1300, 32, 16), (40, 7, 3, 1), (5, 3, 2, 16)])
@pytest.mark.parametrize("unit", [True, False])
def test_equals_scikit_learn(n: int, m: int, d: int, k: int, unit: bool) -> None:
    rng = np.random.default_rng(n)
    known, asked = rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(m, d)).astype(np.float32)
    if unit:
        known /= np.linalg.norm(known, axis=1, keepdims=True)
        asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    values = rng.normal(size=n)
    oracle = KNeighborsRegressor(min(k, n), weights="distance", algorithm="brute").fit(known.astype(float), values)
    np.testing.assert_allclose(knn_regression(known, values, asked, k), oracle.predict(asked.astype(float)), rtol=1e-9)


def test_equal_galaxies_decide_alone() -> None:
    known = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    assert knn_regression(known, np.array([1.0, 3.0, 100.0]), known[:1], 3) == pytest.approx([2.0])


def test_for_unit_vectors_the_distance_is_that_of_the_cosine() -> None:
    angles = np.array([0.1, 0.3])
    known = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    weights = 1 / np.sqrt(2 - 2 * np.cos(angles))
    expected = (weights * [5.0, 9.0]).sum() / weights.sum()
    assert knn_regression(known, np.array([5.0, 9.0]), np.array([[1.0, 0.0]]), 2) == pytest.approx([expected])


def test_standardise_equals_scikit_learn_and_survives_a_constant() -> None:
    rng = np.random.default_rng(0)
    known, asked = rng.normal(3, 5, (30, 4)), rng.normal(size=(10, 4))
    known[:, 2] = asked[:, 2] = 7
    scaler = StandardScaler().fit(known)
    for ours, theirs in zip(standardise(known, asked), (scaler.transform(known), scaler.transform(asked)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_measures_on_a_worked_example() -> None:
    truth = np.array([0.0, 0.25, 0.6, 1.0, 0.5])
    residual = np.array([0.01, -0.01, 0.02, 0.3, 0.0])
    predicted = truth + residual * (1 + truth)
    quality = redshift_errors(truth, predicted)
    assert quality.bias == pytest.approx(0.064)
    assert quality.outlier_fraction == pytest.approx(0.2)
    # median residual 0.01; deviations 0, 0.02, 0.01, 0.29, 0.01; their median 0.01
    assert quality.sigma_nmad == pytest.approx(0.014826)
    interval = r2_interval(truth, predicted)
    assert interval.value == pytest.approx(r2_score(truth, predicted))
    assert interval.low <= interval.value <= interval.high


def test_r2_of_perfect_mean_and_constant() -> None:
    truth = np.array([1.0, 2.0, 3.0])
    assert r2(truth, truth) == 1
    assert r2(truth, np.full(3, 2.0)) == 0
    assert np.isnan(r2(np.ones(3), truth))


def test_the_interval_of_a_difference_knows_noise_from_difference() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 1, 800)
    good, as_good, worse = (truth + rng.normal(0, sigma, 800) for sigma in (0.1, 0.1, 0.15))
    difference, low, high = r2_difference(truth, good, worse)
    assert 0 < low < difference < high
    difference, low, high = r2_difference(truth, good, as_good)
    assert low < 0 < high


def test_hold_out() -> None:
    keys = np.array([f"k{i}" for i in range(1000)], object)
    splits = np.array(["train", "test", "val", "train"] * 250, object)
    chosen = hold_out(splits, keys)
    assert chosen.note is None
    np.testing.assert_array_equal(chosen.neighbours, splits == "train")
    np.testing.assert_array_equal(chosen.queries, splits == "test")
    chosen = hold_out(np.where(splits == "test", "val", splits), keys)
    assert chosen.note is not None
    assert "validation" in chosen.note
    chosen = hold_out(np.full(1000, "test", object), keys)
    assert chosen.note is not None
    assert "one split (test)" in chosen.note
    assert not (chosen.neighbours & chosen.queries).any()
    assert (chosen.neighbours | chosen.queries).all()
    assert 150 < chosen.queries.sum() < 250
