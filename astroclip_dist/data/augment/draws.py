"""The random numbers of a view: drawn on the host from the sample's identity, a few for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from astroclip_dist.config.augmentation import ImageAugmentation
from astroclip_dist.data.augment.published import BANDS, EBV, EBV_MAX, PIXEL_NOISE, PSF_SIGMA, ShiftedLognormal
from astroclip_dist.data.draws import uniform

# Which of a sample's uniform numbers is for what; those of crop and symmetry come first, as they are always drawn.
_CROP, _SYMMETRY = slice(0, 2), slice(2, 5)
_ANGLE, _SCALE, _BLURRED, _NOISY, _EBV = 5, 6, 7, 8, 9
_PSF_TRUE, _PSF_FINAL, _NOISE_TRUE, _NOISE_FINAL = slice(10, 13), slice(13, 16), slice(16, 19), slice(19, 22)
_NOISE_KEY = slice(22, 25)
_FOR_GEOMETRY, _FOR_ALL = 7, 25


@dataclass(frozen=True)
class ViewDraws:
    """What chance decided for some views of n images: arrays of (n, views, ...).

    Attributes:
        crop: (n, views, 2) in [0, 1), where the crop lies vertically and horizontally in its range.
        symmetry: (n, views, 3) bool: flip left-right, flip up-down, transpose, in this order.
        angle: (n, views) radians.
        scale: (n, views) magnification.
        blur: (n, views, 3) additional Gaussian sigma of each band, pixels; 0: none.
        noise: (n, views, 3) additional noise of each band, nanomaggies; 0: none.
        noise_key: (n, views, 3) int64, keys of the pixels' noise.
        ebv: (n, views) additional E(B-V), magnitudes.
    """

    crop: np.ndarray
    symmetry: np.ndarray
    angle: np.ndarray
    scale: np.ndarray
    blur: np.ndarray
    noise: np.ndarray
    noise_key: np.ndarray
    ebv: np.ndarray

    def part(self, rows: slice) -> ViewDraws:
        return ViewDraws(**{name: values[rows] for name, values in vars(self).items()})

    @classmethod
    def beside(cls, draws: Sequence[ViewDraws]) -> ViewDraws:
        """The views of several draws of the same images, one after the other."""
        return cls(**{name: np.concatenate([vars(d)[name] for d in draws], axis=1) for name in vars(draws[0])})


def draw_views(recipe: ImageAugmentation, key: int, sample_ids: np.ndarray) -> ViewDraws:
    """Draw what a recipe leaves to chance, for one view of each image.

    Args:
        key: ``data.draws.stream_key`` of seed, epoch and view.
        sample_ids: (n,) uint64.
    """
    n, bands = len(sample_ids), len(BANDS)
    photometric = recipe.blur_probability > 0 or recipe.noise_probability > 0 or recipe.reddening
    u = uniform(key, sample_ids, _FOR_ALL if photometric else _FOR_GEOMETRY)
    symmetry = u[:, _SYMMETRY] < 0.5
    if recipe.flips:
        symmetry[:, 2] = False
    elif not recipe.flips_and_quarter_turns:
        symmetry[:] = False
    low, high = recipe.size_scale or (1.0, 1.0)
    blur, noise, ebv = np.zeros((n, bands)), np.zeros((n, bands)), np.zeros(n)
    noise_key = np.zeros((n, bands), np.int64)
    if recipe.blur_probability > 0:
        applied = u[:, _BLURRED, None] < recipe.blur_probability
        blur = applied * additional(lognormal(u[:, _PSF_TRUE], PSF_SIGMA), lognormal(u[:, _PSF_FINAL], PSF_SIGMA))
    if recipe.noise_probability > 0:
        applied = u[:, _NOISY, None] < recipe.noise_probability
        levels = (lognormal(u[:, part], PIXEL_NOISE) for part in (_NOISE_TRUE, _NOISE_FINAL))
        noise = applied * additional(*levels)
        noise_key = (u[:, _NOISE_KEY] * 2.0**53).astype(np.int64) << 10
    if recipe.reddening:
        ebv = np.minimum(lognormal(u[:, _EBV, None], EBV)[:, 0], EBV_MAX)
    return ViewDraws(
        crop=u[:, None, _CROP],
        symmetry=symmetry[:, None],
        angle=u[:, _ANGLE, None] * (2 * np.pi if recipe.rotation else 0.0),
        scale=low + u[:, _SCALE, None] * (high - low),
        blur=blur[:, None],
        noise=noise[:, None],
        noise_key=noise_key[:, None],
        ebv=ebv[:, None],
    )


def lognormal(u: np.ndarray, fit: ShiftedLognormal) -> np.ndarray:
    """Quantiles of a fit, never negative.

    Args:
        u: (n, bands), probabilities in [0, 1).
    """
    normal = ndtri(np.maximum(u, 2.0**-54))
    return np.maximum(np.array(fit.loc) + np.array(fit.scale) * np.exp(np.array(fit.shape) * normal), 0.0)


def additional(true: np.ndarray, final: np.ndarray) -> np.ndarray:
    """What must be added in quadrature to get from one level to another; none where it is there already.

    Stein et al.: the survey gave the image one level; give it that of another place of the survey, which can only be
    done where that is the worse one.
    """
    return np.sqrt(np.maximum(final**2 - true**2, 0.0))


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device; the host does not wait for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
