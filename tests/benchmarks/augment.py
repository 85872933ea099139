"""Batched augmentation over per-sample transforms in torchvision's style: the same recipe, one thread each.

The recipe is AstroCLIP's published code, plus rotation by any angle: of each image of 152 px two views of 144 px and
eight of 60 px, each rotated, cropped, flipped, blurred and made noisy with its probability and levels, and stretched to
colours.

The alternative takes each image and view by itself, as a data loader's worker does: torchvision's rotate, crop and
flips, scipy's gaussian_filter a band (the one that scikit-image's, AstroCLIP's choice, calls; torchvision's is slower),
noise by torch.randn only for bands that get some, the stretch vectorised in NumPy; then views are stacked to batches.
What is compared is the CPU time of one thread: worker processes would multiply it on one side, threads on the other.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
import torchvision.transforms.v2.functional as transforms
from scipy.ndimage import gaussian_filter
from torch import Tensor

from astroclip_dist.config.augmentation import ViewRecipe
from astroclip_dist.config.objective import ImageDino
from astroclip_dist.data.augment import MultiCropPlan, augment, multi_crop, plan_of
from astroclip_dist.data.augment.published import PIXEL_NOISE, PSF_SIGMA, ShiftedLognormal
from astroclip_dist.data.preprocessing.images import stretch
from astroclip_dist.data.preprocessing.rgb import BAND_SCALES, OFFSET, Q
from astroclip_dist.data.streaming.batch_memory import BatchMemory
from tests.benchmarks.result import Result, Size, interleaved, paired_ratio, print_result, size_asked_for

# images, repeats
SIZES: dict[Size, tuple[int, int]] = {"small": (4, 1), "default": (64, 7), "large": (256, 11)}
TO_COLOURS = partial(stretch, how="rgb")
SCALES = np.array(BAND_SCALES, np.float32)[:, None, None]


class PerSample:
    """The views of one image after the other."""

    def __init__(self, recipes: list[ViewRecipe], rotate_first: bool = True) -> None:
        self._recipes, self._rotate_first = recipes, rotate_first
        self._rng = np.random.default_rng(0)

    def __call__(self, images: Tensor) -> list[Tensor]:
        samples = [[self._view(image, recipe) for recipe in self._recipes] for image in images]
        return [torch.stack(views) for views in zip(*samples, strict=True)]

    def _view(self, image: Tensor, recipe: ViewRecipe) -> Tensor:
        rng = self._rng
        if recipe.rotation and self._rotate_first:
            image = self._rotate(image)
        top, left = rng.integers(0, image.shape[-1] - recipe.size + 1, 2).tolist()
        view = transforms.crop(image, top, left, recipe.size, recipe.size)
        if recipe.rotation and not self._rotate_first:
            view = self._rotate(view)
        if rng.random() < 0.5:
            view = transforms.horizontal_flip(view)
        if rng.random() < 0.5:
            view = transforms.vertical_flip(view)
        pixels = view.numpy()
        if rng.random() < recipe.blur_probability:
            blurred = [
                gaussian_filter(band, sigma, mode="reflect") if sigma > 0 else band
                for band, sigma in zip(pixels, self._added(PSF_SIGMA), strict=True)
            ]
            pixels = np.stack(blurred)
        if rng.random() < recipe.noise_probability:
            levels = self._added(PIXEL_NOISE)
            pixels = np.stack(
                [
                    band + torch.randn(band.shape).numpy() * np.float32(level) if level > 0 else band
                    for band, level in zip(pixels, levels, strict=True)
                ]
            )
        return torch.from_numpy(to_colours(pixels))

    def _rotate(self, image: Tensor) -> Tensor:
        angle = self._rng.uniform(0, 360)
        return transforms.rotate(image, angle, interpolation=transforms.InterpolationMode.BILINEAR)

    def _added(self, fit: ShiftedLognormal) -> np.ndarray:
        true, final = (self._rng.lognormal(np.log(fit.scale), fit.shape) + np.array(fit.loc) for _ in range(2))
        return np.sqrt(np.maximum(final**2 - true**2, 0))


def to_colours(pixels: np.ndarray) -> np.ndarray:
    scaled = pixels * SCALES + np.float32(OFFSET)
    intensity = np.maximum(np.maximum(scaled, 0).mean(axis=0), np.float32(1e-6))
    scaled *= np.arcsinh(np.float32(Q) * intensity) / (np.float32(Q**0.5) * intensity)
    return np.clip(scaled[::-1], 0, 1)


class Batched:
    """Our views of the same plan."""

    def __init__(self, plan: MultiCropPlan) -> None:
        self._plan, self._epoch, self._memory = plan, 0, BatchMemory()

    def __call__(self, images: Tensor) -> list[Tensor]:
        self._epoch += 1
        ids = np.arange(len(images), dtype=np.uint64)
        views = multi_crop(images, ids, self._epoch, self._plan, TO_COLOURS, self._memory)
        return views.global_views + views.local_views


def rotated(plan: MultiCropPlan) -> MultiCropPlan:
    def turned(recipes: tuple[ViewRecipe, ...]) -> tuple[ViewRecipe, ...]:
        return tuple(recipe.model_copy(update={"rotation": True, "beyond_edge": "zero"}) for recipe in recipes)

    return MultiCropPlan(turned(plan.global_views), turned(plan.local_views))


def check_alike(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """The measure is of the same work: shapes, mean and spread of each view agree."""
    for mine, other in zip(ours, theirs, strict=True):
        if mine.shape != other.shape:
            raise ValueError(f"views of shape {tuple(mine.shape)} and {tuple(other.shape)}")
    for moment in (torch.mean, torch.std):
        left, right = (statistics.mean(moment(view).item() for view in views) for views in (ours, theirs))
        if abs(left / right - 1) > 0.1:
            raise ValueError(f"the views' {moment.__name__}s differ: {left:.4f}, {right:.4f}")


def sky(count: int) -> Tensor:
    """Galaxies of random brightness over the survey's noise, (count, 3, 152, 152) nanomaggies."""
    rng = np.random.default_rng(1)
    rows, columns = np.mgrid[-75.5:76.5, -75.5:76.5]
    profile = np.exp(-np.hypot(rows, columns) / rng.uniform(3, 12, (count, 1, 1, 1)))
    flux = profile * rng.lognormal(-2, 1, (count, 3, 1, 1)) + rng.normal(0, 0.008, (count, 3, 152, 152))
    return torch.from_numpy(flux.astype(np.float32))


def cpu_seconds(work: Callable[[Tensor], object], images: Tensor) -> float:
    began = time.process_time()
    work(images)
    return time.process_time() - began


def single_views() -> Mapping[str, ViewRecipe]:
    """What each operation costs, on views of 144 px, applied to every image."""
    plain = {"size": 144, "random_crop": False, "flips_and_quarter_turns": False}
    return {
        "crop, flips": ViewRecipe(size=144, flips=True, flips_and_quarter_turns=False),
        "rotation": ViewRecipe(**plain, rotation=True, beyond_edge="zero"),
        "blur": ViewRecipe(**plain, blur=1),
        "noise": ViewRecipe(**plain, noise=1),
    }


def one_view(recipe: ViewRecipe, memory: BatchMemory, images: Tensor) -> Tensor:
    return augment(images, np.arange(len(images), dtype=np.uint64), 1, recipe, TO_COLOURS, memory)


def main() -> None:
    count, repeats = SIZES[size_asked_for(__doc__)]
    torch.set_num_threads(1)
    images = sky(count)
    plan = plan_of(ImageDino())
    plans = {"the code's recipe": plan, "the same, rotated": rotated(plan)}
    cases: dict[str, tuple[Callable[[Tensor], object], Callable[[Tensor], object]]] = {}
    for name, plan in plans.items():
        cases[name] = (Batched(plan), PerSample([*plan.global_views, *plan.local_views]))
    turned = plans["the same, rotated"]
    cases["rotated after the crop"] = (
        Batched(turned),
        PerSample([*turned.global_views, *turned.local_views], rotate_first=False),
    )
    for name, recipe in single_views().items():
        cases[f"one view, stretch + {name}"] = (partial(one_view, recipe, BatchMemory()), PerSample([recipe]))
    if count >= SIZES["default"][0]:
        check_alike(Batched(turned)(images), PerSample([*turned.global_views, *turned.local_views])(images))
    timed = {
        (name, side): partial(cpu_seconds, work, images)
        for name, sides in cases.items()
        for side, work in zip(("ours", "theirs"), sides, strict=True)
    }
    figures = interleaved(timed, repeats)
    rows: list[list[object]] = []
    for name in cases:
        ours, theirs = figures[name, "ours"], figures[name, "theirs"]
        times = [statistics.median(side) / count * 1e3 for side in (ours, theirs)]
        rows.append([name, *times, paired_ratio(theirs, ours)])
    print_result(
        Result("augment", float(str(rows[1][-1])), ">= 5"),
        f"{count} images of 152 px, two views of 144 px and eight of 60 px; medians of {repeats} rounds",
        ["CPU ms an image", "batched", "per sample", "ratio"],
        rows,
    )


if __name__ == "__main__":
    main()
