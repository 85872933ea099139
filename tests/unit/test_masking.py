"""Masks of patches and of segments: their counts, their shapes, and what they depend on."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from astroclip_dist.data.draws import stream_key
from astroclip_dist.data.masking.blocks import block_masks
from astroclip_dist.data.masking.segments import segment_masks
from astroclip_dist.errors import ConfigError

IDS = np.random.default_rng(7).integers(0, 2**64, 4000, np.uint64)
KEY = stream_key("masks", 1)


def test_half_of_the_crops_are_masked_and_those_by_their_share() -> None:
    shares = block_masks(IDS, KEY, side=12).double().mean(dim=1)
    masked = shares[shares > 0]
    assert len(masked) / len(IDS) == pytest.approx(0.5, abs=0.03)
    # Uniform in [0.1, 0.5], in whole patches of 144.
    assert masked.mean() == pytest.approx(0.3, abs=0.01)
    assert masked.std() == pytest.approx(0.4 / 12**0.5, abs=0.005)
    assert masked.min() == pytest.approx(0.1, abs=0.5 / 144 + 1e-9)
    assert masked.max() == pytest.approx(0.5, abs=0.5 / 144 + 1e-9)


@pytest.mark.parametrize("share", [0.03, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("side", [1, 2, 3, 5, 6, 12])
def test_the_number_of_masked_patches_is_exact_on_any_grid(side: int, share: float) -> None:
    masks = block_masks(IDS[:200], KEY, side, probability=1.0, ratio=(share, share))
    assert masks.dtype == torch.bool
    assert masks.shape == (200, side * side)
    assert set(masks.sum(dim=1).tolist()) == {max(1, round(share * side**2))}


def test_no_crop_is_masked_with_probability_zero() -> None:
    assert not block_masks(IDS, KEY, side=4, probability=0.0).any()


def test_masks_are_blocks() -> None:
    masks = block_masks(IDS, KEY, 12, probability=1.0, ratio=(0.3, 0.3)).unflatten(1, (12, 12))
    scattered = torch.rand(masks.shape, generator=torch.Generator().manual_seed(0)) < 0.3

    def borders(grids: torch.Tensor) -> float:
        """Pairs of neighbours of which one is masked, a crop."""
        across = (grids[:, 1:] ^ grids[:, :-1]).sum() + (grids[:, :, 1:] ^ grids[:, :, :-1]).sum()
        return across.item() / len(grids)

    assert borders(masks) < 0.4 * borders(scattered)
    # A single block of the smallest area is a rectangle.
    for mask in block_masks(IDS[:200], KEY, 12, probability=1.0, ratio=(4 / 144, 4 / 144)).unflatten(1, (12, 12)):
        rows, columns = mask.nonzero().unbind(dim=1)
        assert (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1) <= 6


def test_blocks_favour_no_side_of_the_crop() -> None:
    covered = block_masks(IDS, KEY, 12, probability=1.0).unflatten(1, (12, 12)).double().mean(dim=0)
    torch.testing.assert_close(covered, covered.flip(0), atol=0.04, rtol=0)
    torch.testing.assert_close(covered, covered.flip(1), atol=0.04, rtol=0)
    torch.testing.assert_close(covered, covered.T, atol=0.04, rtol=0)
    assert covered[5:7, 5:7].min() > 0.4
    assert covered.min() > 0.02


@pytest.mark.parametrize("draw", [lambda ids, key: block_masks(ids, key, 6), lambda ids, key: segments(ids, key)])
def test_a_mask_depends_on_its_sample_alone(draw: Callable[[np.ndarray, int], torch.Tensor]) -> None:
    batch = draw(IDS[:40], KEY)
    assert torch.equal(batch, draw(IDS[:40], KEY))
    order = np.random.default_rng(1).permutation(40)
    assert torch.equal(batch[order], draw(IDS[:40][order], KEY))
    assert torch.equal(batch, torch.cat([draw(IDS[i : i + 1], KEY) for i in range(40)]))
    assert not torch.equal(batch, draw(IDS[:40], KEY + 1))
    assert draw(IDS[:0], KEY).shape == (0, batch.shape[1])


def segments(ids: np.ndarray, key: int) -> torch.Tensor:
    return segment_masks(ids, key, tokens=778, segments=6, width=50)


@pytest.mark.parametrize(("tokens", "count", "width"), [(778, 6, 50), (778, 6, 30), (25, 6, 4), (80, 3, 1), (9, 1, 8)])
def test_segments(tokens: int, count: int, width: int) -> None:
    masks = segment_masks(IDS, KEY, tokens, count, width)
    assert masks.shape == (len(IDS), tokens)
    assert set(masks.sum(dim=1).tolist()) == {count * width}
    assert not masks[:, 0].any()
    edges = [1 + part * (tokens - 1) // count for part in range(count + 1)]
    for first, end in itertools.pairwise(edges):
        inside = torch.nn.functional.pad(masks[:, first:end], (1, 0))
        assert set(inside.sum(dim=1).tolist()) == {width}
        assert set((inside[:, 1:] & ~inside[:, :-1]).sum(dim=1).tolist()) == {1}, "contiguous"


def test_segments_start_anywhere_in_their_part() -> None:
    masks = segment_masks(IDS, KEY, tokens=61, segments=6, width=4)
    first = masks[:, 1:11].int().argmax(dim=1)
    assert torch.bincount(first, minlength=7).tolist() == pytest.approx([len(IDS) / 7] * 7, rel=0.15)
    assert masks.double().mean() == pytest.approx(24 / 61)
    # One part's draw says nothing about another's.
    later = masks[:, 51:61].int().argmax(dim=1)
    assert abs(np.corrcoef(first, later)[0, 1]) < 0.05


def test_a_segment_that_does_not_fit() -> None:
    assert segment_masks(IDS[:5], KEY, tokens=778, segments=6, width=129).sum() == 5 * 6 * 129
    with pytest.raises(ConfigError, match=r"objective.mask_width: 130. .* at most 129"):
        segment_masks(IDS[:5], KEY, tokens=778, segments=6, width=130)
