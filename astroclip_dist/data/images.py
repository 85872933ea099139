"""Images to the input of the image encoder: a view (crop, flips, quarter turns) and a stretch of the flux."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from astroclip_dist.data.draws import uniform
from astroclip_dist.data.rgb import BAND_SCALES, to_rgb
from astroclip_dist.errors import DataError

# Brings the sky's noise near 0.2 and bright nuclei near 2, in every band.
_ASINH_GAIN, _ASINH_RANGE = 10.0, 3.0


def stretch(flux: Tensor, how: Literal["rgb", "asinh"]) -> Tensor:
    """Compress the dynamic range of (n, 3, H, W) fluxes in nanomaggies, bands g, r, z; float32.

    ``rgb`` is the viewer's colour stretch that AstroCLIP uses, cut to [0, 1]. ``asinh`` stretches each band by itself
    and loses nothing at bright centres.
    """
    flux = flux.float()
    if how == "rgb":
        return to_rgb(flux)
    scales = flux.new_tensor(BAND_SCALES).view(3, 1, 1)
    return torch.asinh(flux * (scales * _ASINH_GAIN)) / _ASINH_RANGE


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The middle (n, bands, size, size) of (n, bands, H, W) images.

    Raises:
        DataError: the images are smaller.
    """
    top, left = _margins(images, size)
    return images[..., top // 2 : top // 2 + size, left // 2 : left // 2 + size]


def random_views(
    images: Tensor, size: int, key: int, sample_ids: np.ndarray, *, random_crop: bool, flips_and_quarter_turns: bool
) -> Tensor:
    """One view of each image, drawn from the sample's identity.

    Args:
        images: (n, bands, H, W), on any device.
        key: ``draws.stream_key`` of seed and epoch.
        sample_ids: (n,) uint64.

    Returns:
        (n, bands, size, size), of the images' dtype and device.
    """
    draws = uniform(key, sample_ids, 5)
    if random_crop:
        margins = np.array(_margins(images, size)) + 1
        corners = torch.from_numpy((draws[:, :2] * margins).astype(np.int64)).to(images.device, non_blocking=True)
        offsets = torch.arange(size, device=images.device)
        rows = (corners[:, :1] + offsets)[:, None, :, None]
        columns = (corners[:, 1:] + offsets)[:, None, None, :]
        sample = torch.arange(len(images), device=images.device)[:, None, None, None]
        band = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        images = images[sample, band, rows, columns]
    else:
        images = centre_crop(images, size)
    if flips_and_quarter_turns:
        flips = torch.from_numpy(draws[:, 2:] < 0.5).to(images.device, non_blocking=True)
        flip = flips.T[:, :, None, None, None]
        # The eight symmetries of the square: two flips and the transposition, each with probability one half.
        images = torch.where(flip[0], images.flip(-1), images)
        images = torch.where(flip[1], images.flip(-2), images)
        images = torch.where(flip[2], images.transpose(-1, -2), images)
    return images


def _margins(images: Tensor, size: int) -> tuple[int, int]:
    height, width = images.shape[-2:]
    if min(height, width) < size:
        raise DataError(
            "objective.image.crop", size, f"The dataset's images have {height} x {width} pixels: choose a smaller crop."
        )
    return height - size, width - size
