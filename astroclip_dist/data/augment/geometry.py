"""Crop, symmetry, rotation and scaling of a batch in one resampling; exact copies of pixels where that will do.

A view's pixel o, counted from the view's centre, shows the image at

    s = centre of the image + R(-angle) (centre of the crop + zoom D o) / scale

with D one of the eight symmetries of the square, R a rotation, and zoom the side of the crop over that of the view. The
image is turned and scaled about its centre, where the galaxy is; then it is cropped, as by Stein et al.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from astroclip_dist.config.augmentation import ViewRecipe
from astroclip_dist.data.augment.draws import ViewDraws, to_device
from astroclip_dist.errors import DataError


def cut_views(images: Tensor, recipe: ViewRecipe, draws: ViewDraws) -> Tensor:
    """The views' pixels.

    Args:
        images: (n, bands, H, W), on any device.
        draws: of any number of views of these images.

    Returns:
        (n, bands, views, size, size), contiguous; float32 where pixels are interpolated, else of the images' dtype,
        pixel for pixel.

    Raises:
        DataError: the images are smaller than the crop.
    """
    height, width = images.shape[-2:]
    side = recipe.size if recipe.cutout_area is None else round(min(height, width) * recipe.cutout_area**0.5, 6)
    margins = np.array([height, width]) - side
    if margins.min() < 0:
        raise DataError(
            "objective.image.crop",
            recipe.size,
            f"The dataset's images have {height} x {width} pixels: choose a smaller crop.",
        )
    corners = _corners(recipe, draws.crop, margins)
    if recipe.resamples:
        return _resample(images.float(), recipe, draws, corners, side)
    return _copy(images, recipe.size, draws.symmetry, corners.astype(np.int64))


def _corners(recipe: ViewRecipe, place: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """(n, views, 2), the first row and column of each crop, in pixels of the image."""
    if recipe.random_crop:
        return place * margins if recipe.cutout_area is not None else np.floor(place * (margins + 1))
    centre = margins / 2 if recipe.cutout_area is not None else margins // 2
    if not recipe.jitter:
        return np.broadcast_to(centre, place.shape)
    moved = centre + np.floor(place * (2 * recipe.jitter + 1)) - recipe.jitter
    return moved if recipe.resamples else np.clip(moved, 0, margins)


def _copy(images: Tensor, size: int, symmetry: np.ndarray, corners: np.ndarray) -> Tensor:
    """A pixel's address is a number of its row plus one of its column, also in flipped and transposed crops."""
    n, bands, height, width = images.shape
    steps = np.arange(size)
    across, down, transposed = symmetry[..., :1], symmetry[..., 1:2], symmetry[..., 2:]
    rows = (corners[..., :1] + np.where(down, size - 1 - steps, steps)) * width
    columns = corners[..., 1:] + np.where(across, size - 1 - steps, steps)
    first = (np.arange(n) * bands * height * width)[:, None, None]
    addresses = np.stack([first + np.where(transposed, columns, rows), np.where(transposed, rows, columns)])
    dtype = np.int32 if images.numel() < 2**31 else np.int64
    by_row, by_column = to_device(addresses.astype(dtype), images.device)
    plane = torch.arange(bands, dtype=by_row.dtype, device=images.device) * (height * width)
    index = (by_row[:, None] + plane[:, None, None])[..., None] + by_column[:, None, :, None, :]
    return images.reshape(-1).index_select(0, index.view(-1)).view(index.shape)


def _resample(images: Tensor, recipe: ViewRecipe, draws: ViewDraws, corners: np.ndarray, side: float) -> Tensor:
    """Bilinear, one sampling grid for all bands and views of an image. (n, bands, views, size, size) float32."""
    shape = np.array(images.shape[-2:])
    matrix, centre = _affine(recipe, draws, corners, side, (shape - 1) / 2)
    # Normalised coordinates of torch: -1 and 1 are the outer edges of the first and the last pixel.
    matrix = matrix * (2 / shape)[:, None]
    centre = (2 * centre + 1) / shape - 1
    steps = np.arange(recipe.size) - (recipe.size - 1) / 2
    by_row, by_column = matrix[..., :1] * steps + centre[..., None], matrix[..., 1:] * steps
    # The pairs (column, row) that torch wants, as complex numbers: so one sum makes both.
    pairs = np.stack([part[..., 1, :] + 1j * part[..., 0, :] for part in (by_row, by_column)]).astype(np.complex64)
    rows, columns = to_device(pairs, images.device)
    grid = torch.view_as_real(rows[..., None] + columns[..., None, :])
    padding = "reflection" if recipe.beyond_edge == "reflect" else "zeros"
    # The views of an image lie above one another in the grid.
    pixels = F.grid_sample(images, grid.flatten(1, 2), mode="bilinear", padding_mode=padding, align_corners=False)
    return pixels.view(*images.shape[:2], -1, recipe.size, recipe.size)


def _affine(
    recipe: ViewRecipe, draws: ViewDraws, corners: np.ndarray, side: float, middle: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where views come from: (n, views, 2, 2) and (n, views, 2), pixel (row, column) o, counted from the view's centre,
    shows matrix @ o + centre, in pixels of the image from its first."""
    across, down = np.where(draws.symmetry[..., 0], -1.0, 1.0), np.where(draws.symmetry[..., 1], -1.0, 1.0)
    transposed = draws.symmetry[..., 2]
    kept = ~transposed
    symmetry = np.stack([kept * down, transposed * down, transposed * across, kept * across], axis=-1)
    symmetry = symmetry.reshape(*transposed.shape, 2, 2)
    # The image turns anticlockwise as it is seen with row 0 on top.
    cos, sin = np.cos(draws.angle), np.sin(draws.angle)
    turn = np.stack([cos, sin, -sin, cos], axis=-1).reshape(symmetry.shape) / draws.scale[..., None, None]
    offset = corners + (side - 1) / 2 - middle
    return turn @ symmetry * (side / recipe.size), middle + (turn @ offset[..., None])[..., 0]
