"""Views of a batch of images: geometry, seeing, dust and noise, each image by its own draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from astroclip_dist.config.augmentation import ViewRecipe
from astroclip_dist.data.augment.blur import blur
from astroclip_dist.data.augment.draws import ViewDraws, draw_views, to_device
from astroclip_dist.data.augment.geometry import cut_views
from astroclip_dist.data.augment.noise import standard_normal
from astroclip_dist.data.augment.published import BANDS, REDDENING
from astroclip_dist.data.streaming.batch_memory import BatchMemory
from astroclip_dist.errors import DataError

Stretching = Callable[[Tensor], Tensor]
# Pixels worked on at once. On a CPU few enough that what lies between two operations stays in the cache,
# and enough that an operation outweighs its call; on a GPU it bounds memory.
_CPU_PIXELS, _GPU_PIXELS = 1 << 20, 1 << 27


def augment(
    images: Tensor,
    sample_ids: np.ndarray,
    key: int,
    recipe: ViewRecipe,
    stretch: Stretching | None = None,
    memory: BatchMemory | None = None,
) -> Tensor:
    """One random view of each image, on the images' device.

    A view is a function of key, sample and image alone: batch, order and chunks do not matter.

    Args:
        images: (n, 3, H, W), bands g, r, z, nanomaggies, float32 or float16.
        sample_ids: (n,) uint64.
        key: ``data.draws.stream_key`` of seed, epoch and view.
        recipe: what is done.
        stretch: applied last, pixel by pixel, to (..., 3, H, W); it must keep the shape and give float32.
        memory: on a CPU, gives the memory of the views; with one that lives as long as the training, no step waits for
            pages that are new to the process.

    Returns:
        (n, 3, size, size) float32, contiguous.

    Raises:
        DataError: the images are smaller than the crop, or have other bands than the published numbers are for.
    """
    return augment_together(images, sample_ids, [key], [recipe], stretch, memory)[0]


def augment_together(
    images: Tensor,
    sample_ids: np.ndarray,
    keys: Sequence[int],
    recipes: Sequence[ViewRecipe],
    stretch: Stretching | None = None,
    memory: BatchMemory | None = None,
) -> list[Tensor]:
    """Several views of each image, whose recipes differ in nothing but the probabilities of blur and noise.

    Views are what ``augment`` makes of each key and recipe; together they take one reading of the image.
    """
    if any(_photometric(recipe) for recipe in recipes) and images.shape[1] != len(BANDS):
        raise DataError(
            "objective.augmentation",
            f"{images.shape[1]} bands",
            f"Blur, noise and reddening are known for {', '.join(BANDS)}: switch them off for other bands.",
        )
    recipe = recipes[0]
    n, bands, size = len(images), images.shape[1], recipe.size
    draws = ViewDraws.beside([draw_views(*pair, sample_ids) for pair in zip(recipes, keys, strict=True)])
    shape, on_cpu = (n, bands, size, size), images.device.type == "cpu"
    if on_cpu and memory is not None:
        views = [memory.tensor(shape, torch.float32) for _ in recipes]
    else:
        views = [images.new_empty(shape, dtype=torch.float32) for _ in recipes]
    pixels = _CPU_PIXELS if on_cpu else _GPU_PIXELS
    step = max(1, pixels // (len(recipes) * bands * size**2))
    for start in range(0, n, step):
        rows = slice(start, start + step)
        part = _views(images[rows], recipe, draws.part(rows)).flatten(2, 3)
        part = part if stretch is None else stretch(part)
        for number, view in enumerate(views):
            view[rows] = part[:, :, number * size : (number + 1) * size]
    return views


def _photometric(recipe: ViewRecipe) -> bool:
    return recipe.blur_probability > 0 or recipe.noise_probability > 0 or recipe.reddening


def _views(images: Tensor, recipe: ViewRecipe, draws: ViewDraws) -> Tensor:
    """(n, bands, views, size, size) float32, contiguous."""
    views = cut_views(images, recipe, draws).float()
    planes = views.view(-1, recipe.size, recipe.size)
    sigma, level, key = (by_view.swapaxes(1, 2).reshape(-1) for by_view in (draws.blur, draws.noise, draws.noise_key))
    # A Gaussian narrower than this has no pixel within its truncation but the central one.
    if len(chosen := np.flatnonzero(sigma >= 0.125)):
        at = to_device(chosen, views.device)
        planes.index_copy_(0, at, blur(planes.index_select(0, at), sigma[chosen]))
    if recipe.reddening:
        transmission = 10.0 ** (draws.ebv[:, None] * np.array(REDDENING)[:, None])
        views *= to_device(transmission.astype(np.float32), views.device)[..., None, None]
    if len(chosen := np.flatnonzero(level)):
        noise = standard_normal(to_device(key[chosen], views.device), recipe.size**2)
        noise *= to_device(level[chosen].astype(np.float32), views.device)[:, None]
        planes.index_add_(0, to_device(chosen, views.device), noise.view(-1, recipe.size, recipe.size))
    return views
