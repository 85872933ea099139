"""What self-distillation is fed: crops and masks of each sample, and the crops that stochastic depth keeps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from astroclip_dist.data.augment import augment, plan_of
from astroclip_dist.data.draws import stream_key
from astroclip_dist.data.preprocessing.images import stretch
from astroclip_dist.data.streaming.stream import Batch
from astroclip_dist.objectives.dinov2.crops import Crops
from astroclip_dist.objectives.dinov2.stochastic_depth import kept_crops
from astroclip_dist.parallel.process_group import join, leave
from tests.unit.dinov2_training import data, module, objective, training

__all__ = ["data"]


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """A process group of this process."""
    ranks = join("cpu", 60.0)
    yield
    leave(ranks)


def test_crops_and_masks_belong_to_the_sample(data: str) -> None:
    session = training(data, micro_size="4")
    maker, (batch,) = objective(session).prepare, session.batches(0, 1)
    order = np.array([6, 3, 0, 5, 7, 1, 2, 4])
    moved = Batch(
        batch.cursor,
        [batch.keys[i] for i in order],
        batch.sample_ids[order],
        batch.epochs[order],
        {"image": batch.members["image"][order]},
    )

    def by_sample(parts: list[Crops]) -> list[Tensor]:
        groups = [(crops.global_crops, crops.local_crops, crops.masks) for crops in parts]
        return [torch.cat([g.unflatten(0, (-1, 4)) for g in group], dim=1) for group in zip(*groups, strict=True)]

    for here, there in zip(by_sample(maker(batch)), by_sample(maker(moved)), strict=True):
        torch.testing.assert_close(there, here[:, order], rtol=0, atol=1e-6)
    # And in the first place they are views as the plan has them, each of its own sample.
    config, places = objective(session).config, objective(session).prepare(batch)[1]
    key = stream_key("local view", stream_key("crops", 0), 2)
    recipe = plan_of(config).local_views[2]
    alone = augment(batch.members["image"][5:6], batch.draw_ids[5:6], key, recipe, lambda image: stretch(image, "rgb"))
    torch.testing.assert_close(places.local_crops[2 * 4 + 1], alone[0], rtol=0, atol=1e-6)


def test_masked_patches_and_their_weights(data: str) -> None:
    session = training(data, "masking: {probability: 0.7}", "4")
    for crops in objective(session).prepare(session.batches(0, 1)[0]):
        assert torch.equal(crops.masked, crops.masks.flatten().nonzero()[:, 0])
        sums = torch.zeros(8).index_add(0, crops.masked // 16, crops.weights)
        torch.testing.assert_close(sums, crops.masks.any(dim=1).float())


def test_a_batch_without_a_masked_patch_trains_every_parameter(data: str) -> None:
    session = training(data, "masking: {probability: 0.0}")
    inputs = objective(session).prepare(session.batches(0, 1)[0])
    terms = objective(session).accumulate(session.engine, inputs, 0)
    assert (float(terms["ibot_loss"]), terms["masked_patches"]) == (0.0, 0.0)
    assert all((p.grad is not None) == p.requires_grad for p in module(session).parameters())
    before = objective(session).state()["patch_centre"].clone()
    objective(session).after_step(session.engine, 0)
    assert torch.equal(objective(session).state()["patch_centre"], before)


def test_kept_crops() -> None:
    ids = np.random.default_rng(0).integers(0, 2**63, 12).astype(np.uint64)
    kept = kept_crops(ids, key=3, views=5, depth=3, cohort=4, drop=0.3)
    assert kept.shape == (3, 2, 3 * 14)
    rows = kept.reshape(6, -1)
    assert all(len(np.unique(row)) == 42 and row.max() < 60 for row in rows)
    assert len({row.tobytes() for row in rows}) == 6
    # Fourteen of the twenty crops of every cohort, chosen by its samples alone.
    cohorts = rows % 12 // 4
    assert all((cohorts == cohort).sum(axis=1).tolist() == [14] * 6 for cohort in range(3))
    alone = kept_crops(ids[4:8], key=3, views=5, depth=3, cohort=4, drop=0.3).reshape(6, -1)
    for row, own in zip(rows, alone, strict=True):
        mine = row[row % 12 // 4 == 1]
        assert np.array_equal(mine // 12 * 4 + mine % 4, own)


def test_kept_crops_are_never_none_and_equally_often_each() -> None:
    ids = np.arange(4000, dtype=np.uint64)
    assert kept_crops(ids[:4], 0, views=1, depth=2, cohort=2, drop=0.9).shape == (2, 2, 2)
    # (1 - 0.9) x 10 is 0.99... in binary.
    assert kept_crops(ids[:10], 0, views=1, depth=1, cohort=10, drop=0.9).shape == (1, 2, 1)
    (attention, mlp), *_ = kept_crops(ids, 0, views=2, depth=1, cohort=4, drop=0.25)
    counts = np.bincount(attention % 4, minlength=4)
    assert np.abs(counts / 1500 - 1).max() < 0.06
    both = len(np.intersect1d(attention, mlp)) / 8000
    assert both == pytest.approx(0.75**2, abs=0.02)
