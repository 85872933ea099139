"""Distributions: levels against scipy's lognormal, noise against the normal, bits against the host's generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from astroclip_dist.config.augmentation import ViewRecipe
from astroclip_dist.data.augment.draws import additional, draw_views, lognormal
from astroclip_dist.data.augment.noise import _normal_levels, mix, standard_normal
from astroclip_dist.data.augment.published import EBV, EBV_MAX, PIXEL_NOISE, PSF_SIGMA, ShiftedLognormal
from astroclip_dist.data.draws import _mix, stream_key, uniform

N = 20_000
IDS = np.arange(N, dtype=np.uint64)
KEY = stream_key("levels", 3)


@pytest.mark.parametrize("fit", [PIXEL_NOISE, PSF_SIGMA, EBV], ids=["noise", "psf", "ebv"])
def test_levels_follow_the_published_lognormals(fit: ShiftedLognormal) -> None:
    levels = lognormal(uniform(KEY, IDS, len(fit.shape)), fit)
    for band, values in enumerate(levels.T):
        law = stats.lognorm(fit.shape[band], loc=fit.loc[band], scale=fit.scale[band])
        assert stats.kstest(values, law.cdf).pvalue > 1e-3
        assert (values >= 0).all()


def test_the_smallest_uniform_number_gives_a_finite_level() -> None:
    assert np.isfinite(lognormal(np.zeros((1, 3)), PSF_SIGMA)).all()


def test_added_levels_bring_one_draw_to_another_in_quadrature() -> None:
    draws = draw_views(ViewRecipe(size=8, blur=1, noise=1, reddening=True), KEY, IDS)
    rng = np.random.default_rng(0)
    blur, noise, ebv = draws.blur[:, 0], draws.noise[:, 0], draws.ebv[:, 0]
    for found, fit in ((blur, PSF_SIGMA), (noise, PIXEL_NOISE)):
        for band in range(3):
            law = stats.lognorm(fit.shape[band], loc=fit.loc[band], scale=fit.scale[band])
            true, final = law.rvs((2, N), random_state=rng)
            expected = np.sqrt(np.maximum(final**2 - true**2, 0))
            assert (found[:, band] > 0).mean() == pytest.approx(0.5, abs=0.02)
            assert stats.ks_2samp(found[:, band], expected).pvalue > 1e-3
    assert abs(np.corrcoef(blur[:, 0], noise[:, 0])[0, 1]) < 0.03
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 0.03
    assert ebv.max() <= EBV_MAX
    assert stats.kstest(ebv, stats.lognorm(EBV.shape[0], EBV.loc[0], EBV.scale[0]).cdf).pvalue > 1e-3


def test_additional_level_by_hand() -> None:
    assert additional(np.array([3.0, 5.0]), np.array([5.0, 3.0])).tolist() == [4.0, 0.0]


def test_bits_are_those_of_the_host_generator() -> None:
    values = np.random.default_rng(1).integers(0, 2**64, 1000, dtype=np.uint64)
    on_torch = mix(torch.from_numpy(values.view(np.int64).copy())).numpy().view(np.uint64)
    with np.errstate(over="ignore"):
        assert np.array_equal(on_torch, _mix(values))


def test_noise_is_normal_and_independent() -> None:
    keys = torch.from_numpy((uniform(KEY, IDS[:64], 1)[:, 0] * 2.0**53).astype(np.int64))
    noise = standard_normal(keys, 4001)
    assert noise.shape == (64, 4001)
    values = noise.flatten().numpy()
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert values.std() == pytest.approx(1, abs=0.005)
    assert stats.kurtosis(values) == pytest.approx(0, abs=0.03)
    limit = 5 / np.sqrt(values.size)
    for lag in (1, 2, 3, 4, 5, 63):
        assert abs((noise[:, lag:] * noise[:, :-lag]).mean()) < limit
    correlation = np.corrcoef(noise.numpy())
    assert np.abs(correlation - np.eye(64)).max() < 5.5 / np.sqrt(4001)


def test_normal_levels_have_mean_0_variance_1_and_tails() -> None:
    levels = _normal_levels(torch.device("cpu")).double()
    assert levels.mean().item() == pytest.approx(0, abs=1e-9)
    assert levels.var(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert 4.2 < levels.max().item() < 4.6
    assert levels.max() == -levels.min()


def test_a_number_does_not_depend_on_how_many_are_drawn() -> None:
    keys = torch.tensor([5, -7])
    assert torch.equal(standard_normal(keys, 10), standard_normal(keys, 99)[:, :10])
