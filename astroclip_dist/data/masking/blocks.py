"""Masks of rectangular blocks of patches, for masked image modelling.

Blocks are proposed as in BEiT (Bao et al. 2021, algorithm 1), with the numbers of iBOT and DINOv2, which AstroCLIP took
over: areas of at least four patches, aspect ratios of 0.3 to 1/0.3. Two things differ from DINOv2's code. A crop is
masked or not by a draw of its own, where DINOv2 masks half of each rank's batch: which half would depend on the world
size. And a mask has exactly as many patches as its ratio asks for: the block that would exceed it is cut, row by row,
where DINOv2 rejects such blocks and gives up after ten attempts.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from astroclip_dist.data.draws import uniform

_MIN_BLOCK = 4
_LOG_ASPECT = math.log(1 / 0.3)
# On a grid of 12 x 12, 99.8% of the masks are complete after as many, at ratios up to 0.5.
_BLOCKS = 12
# A crop's uniform numbers: whether, how much, two flips; then for each block its area, aspect and place.
_MASKED, _RATIO, _FLIPS, _FOR_CROP, _FOR_BLOCK = 0, 1, slice(2, 4), 4, 4


def block_masks(
    ids: np.ndarray, key: int, side: int, probability: float = 0.5, ratio: tuple[float, float] = (0.1, 0.5)
) -> Tensor:
    """Draw a mask for each crop.

    Args:
        ids: (n,) uint64, identities of samples (``Batch.draw_ids``).
        key: ``data.draws.stream_key`` of the seed and of the crop's place among a sample's crops.
        side: patches along a side of the crop.
        probability: with which a crop is masked at all.
        ratio: range of the share of a masked crop's patches, in [0, 1]; it is drawn uniformly, and rounded to whole
            patches, at least one.

    Returns:
        (n, side * side) bool on the CPU, row by row; True: to be predicted.
    """
    draws = uniform(key, ids, _FOR_CROP + _BLOCKS * _FOR_BLOCK)
    masks = np.zeros((len(ids), side, side), bool)
    chosen = np.flatnonzero(draws[:, _MASKED] < probability)
    masks[chosen] = _masks(draws[chosen], side, ratio)
    return torch.from_numpy(masks.reshape(len(ids), side * side))


def _masks(draws: np.ndarray, side: int, ratio: tuple[float, float]) -> np.ndarray:
    """(n, side, side) bool, none of them empty."""
    low, high = ratio
    wanted = np.maximum(np.rint((low + draws[:, _RATIO] * (high - low)) * side**2), 1)
    masks = np.zeros((len(draws), side, side), bool)
    for first in range(_FOR_CROP, draws.shape[1], _FOR_BLOCK):
        missing = wanted - masks.sum(axis=(1, 2))
        block = _blocks(draws[:, first : first + _FOR_BLOCK], missing, side)
        masks |= _first_patches(block & ~masks, missing)
    # The rare mask whose blocks fell on one another is completed as by one more block, the whole crop.
    masks |= _first_patches(~masks, wanted - masks.sum(axis=(1, 2)))
    # What is cut off a block is always below: flips make all sides of the crop equal again.
    for axis, flip in enumerate(draws[:, _FLIPS].T < 0.5, start=1):
        masks[flip] = np.flip(masks[flip], axis)
    return masks


def _blocks(draws: np.ndarray, missing: np.ndarray, side: int) -> np.ndarray:
    """(n, side, side) bool, one rectangle each, which lies within the crop.

    Args:
        draws: (n, 4), of area, aspect, and place along both sides.
        missing: (n,) patches that a mask still needs: no larger area is drawn, unless it is below the smallest.
    """
    area = _MIN_BLOCK + draws[:, 0] * np.maximum(missing - _MIN_BLOCK, 0)
    height = np.sqrt(area * np.exp((2 * draws[:, 1] - 1) * _LOG_ASPECT)).round().clip(1, side)
    width = np.ceil(area / height).clip(1, side)
    place = np.arange(side)
    inside = []
    for length, draw in ((height, draws[:, 2]), (width, draws[:, 3])):
        start = np.floor(draw * (side - length + 1))[:, None]
        inside.append((place >= start) & (place < start + length[:, None]))
    rows, columns = inside
    return rows[:, :, None] & columns[:, None, :]


def _first_patches(patches: np.ndarray, count: np.ndarray) -> np.ndarray:
    """At most ``count``, (n,), of the patches that are set in (n, side, side), in the order of reading."""
    n, height, width = patches.shape
    flat = patches.reshape(n, height * width)
    return (flat & (flat.cumsum(axis=1) <= count[:, None])).reshape(patches.shape)
