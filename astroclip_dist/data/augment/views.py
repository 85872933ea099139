"""Views of a batch of images: geometry, seeing, dust and noise, each image by its own draws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from astroclip_dist.config.augmentation import ViewRecipe
from astroclip_dist.data.augment.blur import blur
from astroclip_dist.data.augment.draws import ViewDraws, draw_views, to_device
from astroclip_dist.data.augment.geometry import cut_views
from astroclip_dist.data.augment.noise import standard_normal
from astroclip_dist.data.augment.published import BANDS, REDDENING
from astroclip_dist.errors import DataError

# Pixels worked on at once. On a CPU what lies between two operations stays in the cache; on a GPU it bounds memory.
_CPU_PIXELS, _GPU_PIXELS = 1 << 18, 1 << 27


def augment(
    images: Tensor,
    sample_ids: np.ndarray,
    key: int,
    recipe: ViewRecipe,
    stretch: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """One random view of each image, on the images' device.

    A view is a function of key, sample and image alone: batch, order and chunks do not matter.

    Args:
        images: (n, 3, H, W), bands g, r, z, nanomaggies, float32 or float16.
        sample_ids: (n,) uint64.
        key: ``data.draws.stream_key`` of seed, epoch and view.
        recipe: what is done.
        stretch: applied last; it must keep the shape and give float32.

    Returns:
        (n, 3, size, size) float32, contiguous.

    Raises:
        DataError: the images are smaller than the crop, or have other bands than the published numbers are for.
    """
    photometric = recipe.blur_probability > 0 or recipe.noise_probability > 0 or recipe.reddening
    if photometric and images.shape[1] != len(BANDS):
        raise DataError(
            "objective.augmentation",
            f"{images.shape[1]} bands",
            f"Blur, noise and reddening are known for {', '.join(BANDS)}: switch them off for other bands.",
        )
    n, bands = images.shape[:2]
    draws = draw_views(recipe, key, sample_ids)
    views = images.new_empty((n, bands, recipe.size, recipe.size), dtype=torch.float32)
    pixels = _CPU_PIXELS if images.device.type == "cpu" else _GPU_PIXELS
    step = max(1, pixels // (bands * recipe.size**2))
    for start in range(0, n, step):
        rows = slice(start, start + step)
        part = _view(images[rows], recipe, draws.part(rows))
        views[rows] = part if stretch is None else stretch(part)
    return views


def _view(images: Tensor, recipe: ViewRecipe, draws: ViewDraws) -> Tensor:
    views = cut_views(images, recipe, draws).float()
    planes = views.view(-1, recipe.size, recipe.size)
    # A Gaussian narrower than this has no pixel within its truncation but the central one.
    if len(chosen := np.flatnonzero(draws.blur.reshape(-1) >= 0.125)):
        at = to_device(chosen, views.device)
        planes.index_copy_(0, at, blur(planes.index_select(0, at), draws.blur.reshape(-1)[chosen]))
    if recipe.reddening:
        transmission = (10.0 ** (draws.ebv[:, None] * np.array(REDDENING))).astype(np.float32)
        views *= to_device(transmission, views.device)[:, :, None, None]
    if len(chosen := np.flatnonzero(draws.noise.reshape(-1))):
        noise = standard_normal(to_device(draws.noise_key.reshape(-1)[chosen], views.device), recipe.size**2)
        noise *= to_device(draws.noise.reshape(-1)[chosen].astype(np.float32), views.device)[:, None]
        planes.index_add_(0, to_device(chosen, views.device), noise.view(-1, recipe.size, recipe.size))
    return views
