"""Centre crops, stretches and tokens: invertible where promised, as published, blind to masked bins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from astroclip_dist.config.model import BandScale
from astroclip_dist.data.preprocessing.images import centre_crop, stretch
from astroclip_dist.data.preprocessing.rgb import arcsinh, from_rgb, to_rgb
from astroclip_dist.data.preprocessing.spectra import num_tokens, slice_spectra
from astroclip_dist.errors import DataError


def test_centre_crop_and_too_small_images() -> None:
    images = torch.arange(100.0).view(1, 1, 10, 10)
    assert centre_crop(images, 4)[0, 0, 0, 0] == 33
    with pytest.raises(DataError, match="10 x 10 pixels: choose a smaller crop"):
        centre_crop(images, 12)


def test_colour_stretch_inverts_where_nothing_is_clipped() -> None:
    flux = torch.rand(2, 3, 6, 6, dtype=torch.float64) * 0.02
    torch.testing.assert_close(from_rgb(to_rgb(flux)), flux, rtol=0, atol=1e-12)


def test_colour_stretch_by_hand() -> None:
    """One pixel worked out from the published rule: red is z, blue is g."""
    flux = torch.tensor([0.02, 0.05, 0.1], dtype=torch.float64).view(3, 1, 1)
    scaled = np.array([0.02 * 6.0, 0.05 * 3.4, 0.1 * 2.2]) + 0.03
    factor = np.arcsinh(20 * scaled.mean()) / np.sqrt(20) / scaled.mean()
    assert to_rgb(flux).flatten().tolist() == pytest.approx((scaled * factor)[::-1].tolist(), abs=1e-12)


def test_asinh_keeps_the_order_of_bright_pixels_that_rgb_clips() -> None:
    flux = torch.tensor([50.0, 100.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert (stretch(flux, "rgb").diff(dim=-1) == 0).any()
    assert (stretch(flux, "asinh").diff(dim=-1) > 0.1).all()


def test_spectrum_tokens_as_published() -> None:
    flux = torch.randn(2, 7781, dtype=torch.float64) * 3 + 1.5
    tokens = slice_spectra(flux, 20, 10)
    assert tokens.shape == (2, 778, 22)
    assert num_tokens(7781, 20, 10) == 778
    mean, std = flux.mean(1), flux.std(1)
    torch.testing.assert_close(tokens[:, 0, :2], torch.stack([(mean - 2) / 2, (std - 2) / 8], 1).float())
    assert (tokens[:, 0, 2:] == 0).all()
    expected = ((flux[1, 30:50] - mean[1]) / std[1]).float()
    torch.testing.assert_close(tokens[1, 4, 2:], expected, rtol=1e-5, atol=1e-5)


def test_flat_spectrum_stays_finite() -> None:
    assert torch.isfinite(slice_spectra(torch.full((1, 100), 5.0), 20, 10)).all()


def test_inverse_hyperbolic_sine() -> None:
    values = torch.cat([torch.linspace(-3, 3, 1001), torch.tensor([0.0, 1e-9, -1e-5, 1e4, -65504.0, 1e18])])
    exact = np.arcsinh(values.double().numpy())
    assert np.abs(arcsinh(values).numpy() - exact).max() < 3e-6
    small = np.abs(exact) < 1
    assert np.abs(arcsinh(values).numpy() - exact)[small].max() < 2e-7


def test_colours_of_any_finite_flux() -> None:
    flux = torch.tensor([0.0, 1e37, -1e37, -0.005, 65504.0]).view(1, 1, 1, 5).expand(2, 3, 4, 5).clone()
    flux[1, 0] *= -1
    colours = to_rgb(flux)
    assert torch.isfinite(colours).all()
    assert colours.min() >= 0
    assert colours.max() <= 1


def test_zscore_is_linear_in_each_band() -> None:
    scale = BandScale(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    found = stretch(torch.full((1, 3, 2, 2), 1.1, dtype=torch.float16), "zscore", scale)
    expected = [(1.1 - 0.1) / 1, (1.1 - 0.2) / 2, (1.1 - 0.3) / 4]
    assert found[0, :, 1, 1].tolist() == pytest.approx(expected, abs=1e-3)


def spectra_with_holes() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    flux = torch.randn(3, 300, generator=generator) * 3 + 40
    ivar = torch.rand(3, 300, generator=generator) + 0.1
    ivar[0, 50:120] = 0
    ivar[1, ::3] = 0
    return torch.where(ivar > 0, flux, 0.0), ivar


@pytest.mark.parametrize("weighted", [False, True])
def test_masked_bins_count_for_nothing(weighted: bool) -> None:
    flux, ivar = spectra_with_holes()
    tokens = slice_spectra(flux, 20, 10, ivar, weighted_mean=weighted)
    for row in range(3):
        good = ivar[row].numpy() > 0
        values = flux[row].double().numpy()
        mean = np.average(values[good], weights=ivar[row].double().numpy()[good] if weighted else None)
        std = np.sqrt(((values[good] - mean) ** 2).sum() / (good.sum() - 1))
        assert tokens[row, 0, :2].tolist() == pytest.approx([(mean - 2) / 2, (std - 2) / 8], rel=1e-5)
        scores = np.where(good, (values - mean) / std, 0)
        expected = np.stack([scores[at : at + 20] for at in range(0, 281, 10)])
        np.testing.assert_allclose(tokens[row, 1:, 2:].numpy(), expected, atol=1e-5)


def test_what_lies_in_masked_bins_does_not_matter() -> None:
    flux, ivar = spectra_with_holes()
    wild = torch.where(ivar > 0, flux, 1e30)
    assert torch.equal(slice_spectra(wild, 20, 10, ivar), slice_spectra(flux, 20, 10, ivar))
    # Without the inverse variances, empty bins drag the mean: the reason for the option.
    plain = slice_spectra(flux, 20, 10)[0, 0, 0] * 2 + 2
    aware = slice_spectra(flux, 20, 10, ivar)[0, 0, 0] * 2 + 2
    assert plain < 32 < 39 < aware


def test_without_masked_bins_both_ways_agree() -> None:
    flux, ivar = spectra_with_holes()
    torch.testing.assert_close(slice_spectra(flux, 20, 10, ivar + 1), slice_spectra(flux, 20, 10), rtol=1e-5, atol=1e-5)


def test_a_spectrum_without_a_good_bin_is_zero() -> None:
    for weighted in (False, True):
        tokens = slice_spectra(torch.full((1, 100), 7.0), 20, 10, torch.zeros(1, 100), weighted_mean=weighted)
        assert (tokens[0, 1:] == 0).all()
        assert torch.isfinite(tokens).all()
