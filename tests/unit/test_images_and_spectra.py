"""Views, stretches and tokens: keyed by sample, invertible where promised, as published."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from astroclip_dist.data.draws import stream_key
from astroclip_dist.data.images import centre_crop, random_views, stretch
from astroclip_dist.data.rgb import from_rgb, to_rgb
from astroclip_dist.data.spectra import num_tokens, slice_spectra
from astroclip_dist.errors import DataError

IDS = np.array([11, 2**63 + 1, 5, 99, 1234567], dtype=np.uint64)


def views(images: torch.Tensor, ids: np.ndarray, epoch: int = 0) -> torch.Tensor:
    return random_views(images, 8, stream_key("view", 0, epoch), ids, random_crop=True, flips_and_quarter_turns=True)


def test_a_view_depends_on_the_sample_not_on_its_batch() -> None:
    images = torch.randn(5, 3, 12, 12)
    together = views(images, IDS)
    for at in range(5):
        assert torch.equal(views(images[at : at + 1], IDS[at : at + 1])[0], together[at])
    assert not torch.equal(views(images, IDS, epoch=1), together)


def test_every_view_is_a_crop_in_one_of_eight_orientations() -> None:
    images = torch.randn(5, 3, 12, 12)
    for image, view in zip(images, views(images, IDS), strict=True):
        turned = [torch.rot90(flip, k, (1, 2)) for flip in (image, image.flip(2)) for k in range(4)]
        corners = [(i, j) for i in range(5) for j in range(5)]
        assert any(torch.equal(view, t[:, i : i + 8, j : j + 8]) for t in turned for i, j in corners)


def test_all_crops_and_orientations_occur_equally_often() -> None:
    """A corner pixel's place tells crop and orientation: 25 x 8 outcomes, 40 expected of each."""
    n = 8000
    coordinates = torch.arange(144.0).view(1, 1, 12, 12).expand(n, 1, 12, 12)
    seen = views(coordinates, np.arange(n, dtype=np.uint64))
    outcomes = torch.stack([seen[:, 0, 0, 0], seen[:, 0, 0, 1]], dim=1).long().tolist()
    counts = np.unique([a * 144 + b for a, b in outcomes], return_counts=True)[1]
    assert len(counts) == 200
    assert ((counts - n / 200) ** 2 / (n / 200)).sum() < 285  # chi-square, 199 degrees of freedom: p = 1e-4


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
