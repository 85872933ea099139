"""Views against slow references made of scipy's parts, one image at a time; and each keyed by its sample alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, gaussian_filter
from torch import Tensor

from astroclip_dist.config.augmentation import ApplyProbability, ViewRecipe
from astroclip_dist.config.model import Stretch
from astroclip_dist.config.objective import ImageDino, View
from astroclip_dist.config.strict import validated
from astroclip_dist.data.augment import MultiCropPlan, augment, multi_crop, plan_of
from astroclip_dist.data.augment.blur import blur
from astroclip_dist.data.augment.draws import draw_views
from astroclip_dist.data.augment.geometry import cut_views
from astroclip_dist.data.augment.noise import standard_normal
from astroclip_dist.data.augment.published import REDDENING
from astroclip_dist.data.draws import stream_key, uniform
from astroclip_dist.data.preprocessing.images import stretch
from astroclip_dist.errors import ConfigError, DataError

IDS = np.array([11, 2**63 + 1, 5, 99, 1234567], dtype=np.uint64)
KEY = stream_key("view", 0, 0)
RGB = partial(stretch, how="rgb")
EVERYTHING = ViewRecipe(
    size=18, rotation=True, size_scale=(0.8, 1.3), blur=0.7, noise=0.7, reddening=True, cutout_area=0.6
)
EXACT = ViewRecipe(size=18, blur=0.7, noise=0.7, reddening=True)


def sky(n: int, size: int = 24, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return (torch.randn(n, 3, size, size, generator=generator) * 0.02 + 0.01).to(dtype)


def plain(size: int, **options: object) -> ViewRecipe:
    """A recipe with nothing on but the options."""
    return ViewRecipe(**{"size": size, "random_crop": False, "flips_and_quarter_turns": False, **options})


# ---- keyed by sample


@pytest.mark.parametrize("recipe", [EVERYTHING, EXACT, ViewRecipe(size=18)], ids=["resampled", "exact", "default"])
def test_a_view_depends_on_the_sample_alone(recipe: ViewRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any batch, order and chunk: bitwise, but for the blur's matrix products (1e-6, with values up to 1)."""
    images = sky(5)
    together = augment(images, IDS, KEY, recipe, RGB)
    tolerance = 1e-6 if recipe.blur else 0.0
    for at in range(5):
        alone = augment(images[at : at + 1], IDS[at : at + 1], KEY, recipe, RGB)[0]
        torch.testing.assert_close(alone, together[at], rtol=0, atol=tolerance)
    order = [3, 0, 4, 1, 2]
    shuffled = augment(images[order], IDS[order], KEY, recipe, RGB)
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=tolerance)
    monkeypatch.setattr("astroclip_dist.data.augment.views._CPU_PIXELS", 2 * 3 * 18**2)
    torch.testing.assert_close(augment(images, IDS, KEY, recipe, RGB), together, rtol=0, atol=tolerance)
    assert not torch.equal(augment(images, IDS, KEY + 1, recipe, RGB), together)


def test_noise_is_the_same_bit_for_bit_in_any_batch() -> None:
    recipe = plain(24, noise=1.0)
    images = sky(5)
    together = augment(images, IDS, KEY, recipe)
    for at in range(5):
        assert torch.equal(augment(images[at : at + 1], IDS[at : at + 1], KEY, recipe)[0], together[at])


# ---- crop and symmetries: exact


def default_views(images: Tensor, ids: np.ndarray) -> Tensor:
    return augment(images, ids, KEY, ViewRecipe(size=8))


def test_every_default_view_is_a_crop_in_one_of_eight_orientations() -> None:
    images = torch.randn(5, 3, 12, 12)
    for image, view in zip(images, default_views(images, IDS), strict=True):
        turned = [torch.rot90(flip, k, (1, 2)) for flip in (image, image.flip(2)) for k in range(4)]
        corners = [(i, j) for i in range(5) for j in range(5)]
        assert any(torch.equal(view, t[:, i : i + 8, j : j + 8]) for t in turned for i, j in corners)


def test_all_crops_and_orientations_occur_equally_often() -> None:
    """A corner pixel's place tells crop and orientation: 25 x 8 outcomes, 40 expected of each."""
    n = 8000
    coordinates = torch.arange(144.0).view(1, 1, 12, 12).expand(n, 3, 12, 12)
    seen = default_views(coordinates, np.arange(n, dtype=np.uint64))
    outcomes = torch.stack([seen[:, 0, 0, 0], seen[:, 0, 0, 1]], dim=1).long().tolist()
    counts = np.unique([a * 144 + b for a, b in outcomes], return_counts=True)[1]
    assert len(counts) == 200
    assert ((counts - n / 200) ** 2 / (n / 200)).sum() < 285  # chi-square, 199 degrees of freedom: p = 1e-4


def test_the_default_view_is_crop_then_flips_then_transposition_of_the_first_five_draws() -> None:
    """So that a run's views stay what they were in the first version, bit for bit."""
    images = sky(5)
    for image, view, u in zip(
        images, augment(images, IDS, KEY, ViewRecipe(size=18)), uniform(KEY, IDS, 5), strict=True
    ):
        top, left = (u[:2] * 7).astype(int)
        expected = image[:, top : top + 18, left : left + 18]
        expected = expected.flip(-1) if u[2] < 0.5 else expected
        expected = expected.flip(-2) if u[3] < 0.5 else expected
        expected = expected.transpose(-1, -2) if u[4] < 0.5 else expected
        assert torch.equal(view, expected)


def test_flips_without_quarter_turns() -> None:
    images = sky(64, 18)
    views = augment(images, np.arange(64, dtype=np.uint64), KEY, plain(18, flips=True))
    flips = [images, images.flip(-1), images.flip(-2), images.flip(-1, -2)]
    found = [sum(torch.equal(view, flip[at]) for at, view in enumerate(views)) for flip in flips]
    assert sum(found) == 64
    assert min(found) > 4


def test_jitter_moves_the_centre_crop_by_whole_pixels_and_no_further_than_the_image() -> None:
    n = 400
    rows = torch.arange(24.0).view(1, 1, 24, 1).expand(n, 3, 24, 24)
    for size, expected in ((18, range(2, 5)), (22, range(0, 3))):
        jitter = 1 if size == 18 else 5
        views = augment(rows, np.arange(n, dtype=np.uint64), KEY, plain(size, jitter=jitter))
        assert set(views[:, 0, 0, 0].long().tolist()) == set(expected)


def test_float16_images_are_copied_exactly() -> None:
    images = sky(5, dtype=torch.float16)
    views = augment(images, IDS, KEY, ViewRecipe(size=18))
    assert views.dtype == torch.float32
    assert torch.equal(views, augment(images.float(), IDS, KEY, ViewRecipe(size=18)))


# ---- rotation, scale, cut-out: one resampling


def slow_view(image: np.ndarray, recipe: ViewRecipe, at: int) -> np.ndarray:
    """By scipy: where does each pixel of the view come from, then bilinear interpolation of each band."""
    draws = draw_views(recipe, KEY, IDS)
    height = image.shape[-1]
    side = recipe.size if recipe.cutout_area is None else height * recipe.cutout_area**0.5
    corner = draws.crop[at, 0] * (height - side)
    if recipe.cutout_area is None:
        corner = np.floor(draws.crop[at, 0] * (height - side + 1))
    if not recipe.random_crop:
        corner = np.full(2, (height - side) / 2 if recipe.cutout_area else (height - side) // 2)
    across, down, transposed = draws.symmetry[at, 0]
    symmetry = np.diag([-1.0 if down else 1.0, -1.0 if across else 1.0])
    if transposed:
        symmetry = symmetry @ np.array([[0.0, 1.0], [1.0, 0.0]])
    cos, sin = np.cos(draws.angle[at, 0]), np.sin(draws.angle[at, 0])
    turn = np.array([[cos, sin], [-sin, cos]]) / draws.scale[at, 0]
    centre, middle = (height - 1) / 2, (recipe.size - 1) / 2
    matrix = turn @ symmetry * side / recipe.size
    offset = centre + turn @ (corner + (side - 1) / 2 - centre) - matrix @ np.full(2, middle)
    mode = {"reflect": "reflect", "zero": "grid-constant"}[recipe.beyond_edge]
    shape = (recipe.size, recipe.size)
    return np.stack([affine_transform(b, matrix, offset, shape, order=1, mode=mode) for b in image.astype(np.float64)])


@pytest.mark.parametrize(
    "recipe",
    [
        plain(18, rotation=True),
        plain(18, rotation=True, beyond_edge="zero"),
        plain(18, size_scale=(0.5, 2.0), beyond_edge="zero"),
        ViewRecipe(size=18, cutout_area=0.3),
        ViewRecipe(size=18, rotation=True, size_scale=(0.9, 1.1), cutout_area=0.8),
        ViewRecipe(size=11, rotation=True, flips=True, flips_and_quarter_turns=False, beyond_edge="zero"),
    ],
    ids=["rotation", "zero outside", "scale", "cut-out", "all", "odd size"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_resampling_is_that_of_scipy(recipe: ViewRecipe, dtype: torch.dtype) -> None:
    images = sky(5, dtype=dtype)
    views = augment(images, IDS, KEY, recipe).numpy()
    for at, view in enumerate(views):
        # Coordinates in float32 are off by up to 1e-5 pixels.
        np.testing.assert_allclose(view, slow_view(images[at].numpy(), recipe, at), rtol=0, atol=2e-6)


def test_the_image_turns_anticlockwise_about_its_centre() -> None:
    images, recipe = sky(5, 18), plain(18, rotation=True)
    draws = replace(draw_views(recipe, KEY, IDS), angle=np.full((5, 1), np.pi / 2))
    torch.testing.assert_close(cut_views(images, recipe, draws)[:, :, 0], images.rot90(1, (2, 3)), rtol=0, atol=1e-6)


def test_a_resampled_crop_without_angle_is_the_exact_crop() -> None:
    images = sky(5)
    exact = augment(images, IDS, KEY, ViewRecipe(size=18))
    resampled = augment(images, IDS, KEY, ViewRecipe(size=18, size_scale=(1.0, 1.0)))
    torch.testing.assert_close(resampled, exact, rtol=0, atol=1e-6)


def test_angles_fill_the_circle_and_scales_their_range() -> None:
    draws = draw_views(ViewRecipe(size=1, rotation=True, size_scale=(0.9, 1.1)), KEY, np.arange(2000, dtype=np.uint64))
    assert np.histogram(draws.angle, 8, (0, 2 * np.pi))[0].min() > 200
    assert np.histogram(draws.scale, 4, (0.9, 1.1))[0].min() > 440


# ---- blur, noise, dust


@pytest.mark.parametrize("size", [7, 24])
def test_blur_is_gaussian_filter_of_each_plane(size: int) -> None:
    """Also where the kernel reaches beyond the plane, several times over."""
    sigma = np.array([0.05, 0.126, 0.7, 1.3, 3.0, 9.0])
    planes = torch.randn(len(sigma), size, size)
    for plane, blurred, width in zip(planes.numpy(), blur(planes, sigma).numpy(), sigma, strict=True):
        expected = gaussian_filter(plane.astype(np.float64), width, mode="reflect", truncate=4.0)
        np.testing.assert_allclose(blurred, expected, rtol=0, atol=2e-6)


def test_a_view_is_cut_then_blurred_then_dimmed_then_noisy() -> None:
    images, draws = sky(5), draw_views(EXACT, KEY, IDS)
    cut = augment(images, IDS, KEY, ViewRecipe(size=18)).double().numpy()
    views = augment(images, IDS, KEY, EXACT)
    assert (draws.blur > 0).sum() in range(1, 15)
    assert (draws.noise > 0).sum() in range(1, 15)
    for at in range(5):
        for band in range(3):
            expected = cut[at, band]
            if draws.blur[at, 0, band]:
                expected = gaussian_filter(expected, draws.blur[at, 0, band], mode="reflect")
            expected = expected * 10 ** (draws.ebv[at, 0] * REDDENING[band])
            pixels = standard_normal(torch.tensor([draws.noise_key[at, 0, band]]), 18 * 18).view(18, 18)
            expected = expected + draws.noise[at, 0, band] * pixels.numpy()
            np.testing.assert_allclose(views[at, band].numpy(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("how", ["rgb", "asinh"])
def test_finite_images_of_any_brightness_give_finite_views(dtype: torch.dtype, how: Stretch) -> None:
    brightest = torch.finfo(torch.float16).max if dtype == torch.float16 else 1e15
    images = torch.zeros(8, 3, 24, 24)
    images[0], images[1], images[2, 0], images[3, :, 5, 5] = brightest, -brightest, brightest, -brightest
    images[4, :, ::2] = brightest
    views = augment(images.to(dtype), np.arange(8, dtype=np.uint64), KEY, EVERYTHING, partial(stretch, how=how))
    assert torch.isfinite(views).all()


# ---- recipes


def test_probabilities_of_blur_and_noise() -> None:
    ids = np.arange(3000, dtype=np.uint64)
    for name, expected in (("paper", 0.1), ("upstream_inverted", 0.9)):
        draws = draw_views(plain(8, blur=0.1, noise=0.1, apply_probability=name), KEY, ids)
        for levels in (draws.blur, draws.noise):
            # With three bands, one in eight of the images that are chosen needs nothing in any.
            assert (levels > 0).any(axis=2).mean() == pytest.approx(expected * 7 / 8, abs=0.03)
    assert not draw_views(plain(8, blur=1, noise=1, apply_probability="upstream_inverted"), KEY, ids).noise.any()


PIXEL_FOR_PIXEL = ImageDino()
RESAMPLED = ImageDino(
    global_views=View(count=2, size=144, area=0.9), local_views=View(count=8, size=60, area=0.4), rotation=True
)


@pytest.mark.parametrize("config", [PIXEL_FOR_PIXEL, RESAMPLED], ids=["pixel-for-pixel", "resampled"])
def test_two_global_and_eight_local_views(config: ImageDino) -> None:
    images, plan = sky(2, 152), plan_of(config)
    assert {view.resamples for view in plan.global_views + plan.local_views} == {config is RESAMPLED}
    views = multi_crop(images, IDS[:2], KEY, plan, RGB)
    assert [tuple(view.shape) for view in views.global_views] == [(2, 3, 144, 144)] * 2
    assert [tuple(view.shape) for view in views.local_views] == [(2, 3, 60, 60)] * 8
    assert len({view.sum().item() for view in views.global_views + views.local_views}) == 10
    again = multi_crop(images[1:], IDS[1:2], KEY, plan, RGB)
    torch.testing.assert_close(again.local_views[7][0], views.local_views[7][1], rtol=0, atol=1e-6)
    alone = augment(images, IDS[:2], stream_key("local view", KEY, 3), plan.local_views[3], RGB)
    torch.testing.assert_close(alone, views.local_views[3], rtol=0, atol=1e-6)


def test_views_of_a_plan_that_are_not_alike() -> None:
    recipe = ViewRecipe(size=8)
    with pytest.raises(ConfigError, match="local_views"):
        MultiCropPlan((recipe,), (recipe, ViewRecipe(size=8, rotation=True)))


@pytest.mark.parametrize(
    ("apply", "of_global", "of_local"), [("paper", [1.0, 0.1], 0.5), ("upstream_inverted", [0.0, 0.9], 0.5)]
)
def test_a_plan_has_the_published_probabilities(
    apply: ApplyProbability, of_global: list[float], of_local: float
) -> None:
    plan = plan_of(ImageDino(apply_probability=apply, local_views=View(count=3, size=60)))
    for kind in ("blur_probability", "noise_probability"):
        assert [getattr(view, kind) for view in plan.global_views] == of_global
        assert [getattr(view, kind) for view in plan.local_views] == [of_local] * 3


@pytest.mark.parametrize(
    ("options", "mend"),
    [
        ({"jitter": 3}, "random_crop: false"),
        ({"flips": True}, "flips_and_quarter_turns: false"),
        ({"size_scale": (1.1, 0.9)}, "smallest, largest"),
        ({"size_scale": (0.0, 0.9)}, "smallest, largest"),
    ],
)
def test_options_that_exclude_each_other(options: dict[str, object], mend: str) -> None:
    with pytest.raises(ConfigError, match=mend):
        validated(ViewRecipe, {"size": 8, **options})


def test_wrong_images() -> None:
    with pytest.raises(DataError, match="24 x 24 pixels: choose a smaller crop"):
        augment(sky(5), IDS, KEY, ViewRecipe(size=25))
    with pytest.raises(DataError, match="4 bands"):
        augment(torch.zeros(5, 4, 24, 24), IDS, KEY, EXACT)
