"""Mixtures: the proportions of every batch, each dataset once a round, positions by arithmetic, ranks that agree."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astroclip_dist.data.ordering.mixture import Mixture, order_of
from astroclip_dist.data.ordering.order import Cursor
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.streaming.stream import Stream
from astroclip_dist.data.streaming.window import needs
from astroclip_dist.errors import ConfigError, DataError
from shards.writing.writer import ShardWriter
from tests.random_survey import IMAGE, SPECTRUM, random_sample


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    datasets = draw(st.integers(1, 4))
    lanes = draw(st.sampled_from([1, 2, 4]))
    return Mixture(
        [np.array(draw(st.lists(st.integers(4, 30), min_size=1, max_size=6))) for _ in range(datasets)],
        draw(st.lists(st.sampled_from([1, 2, 3, 0.5, 0.7, 1 / 3]), min_size=datasets, max_size=datasets)),
        seed=draw(st.integers(0, 2**32 - 1)),
        lanes=lanes,
        global_batch=lanes * draw(st.integers(1, 9)),
        window_shards=draw(st.integers(1, 3)),
    )


@settings(deadline=None, max_examples=300)
@given(mixture=mixtures(), epoch=st.integers(0, 3), data=st.data())
def test_positions_follow_from_the_cursor_alone(mixture: Mixture, epoch: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, mixture.steps_per_epoch - 1))
    cursor = Cursor(epoch, step)
    after = mixture.start(mixture.next(cursor))
    for number, (own, start, end) in enumerate(zip(mixture.components, mixture.start(cursor), after, strict=True)):
        taken = int((mixture.turns(cursor) == number).sum())
        assert start[0] * own.used_length + start[1] + taken == end[0] * own.used_length + end[1]
        if taken:
            assert mixture.step_of(number, *start) == epoch * mixture.steps_per_epoch + step


@settings(deadline=None, max_examples=100)
@given(mixture=mixtures(), step=st.integers(0, 30))
def test_windows_are_needed_in_order_and_cover_all_that_is_taken(mixture: Mixture, step: int) -> None:
    cursor = Cursor(*divmod(step, mixture.steps_per_epoch))
    wanted = list(islice(needs(mixture, range(mixture.lanes), cursor), 60))
    assert [need.step for need in wanted] == sorted(need.step for need in wanted)
    for lane in range(mixture.lanes):
        for number, own in enumerate(mixture.components):
            epoch, position = mixture.start(cursor)[number]
            for need in (need for need in wanted if (need.lane, need.component) == (lane, number)):
                assert (need.window.epoch, need.window.start + need.part.start) == (epoch, position)
                epoch, position = divmod(
                    epoch * own.used_length + position + need.part.stop - need.part.start, own.used_length
                )


def test_weights_are_proportions_and_spread_evenly() -> None:
    mixture = Mixture([np.array([100]), np.array([100])], [3, 1], seed=0, lanes=2, global_batch=16, window_shards=1)
    assert mixture.turns(Cursor()).tolist() == [0, 0, 1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("weights", [(1, 0), (1, -1), (1, 1e-9)])
def test_weights_that_mean_nothing_are_refused(weights: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="weight"):
        Mixture([np.array([10]), np.array([10])], weights, seed=0, lanes=1, global_batch=2, window_shards=1)


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    made = []
    for name, samples in (("large", 90), ("small", 20)):
        folder = tmp_path_factory.mktemp(name)
        with ShardWriter(
            str(folder), IMAGE, SPECTRUM, True, {"kind": name}, samples_per_shard=10, split_fractions={"train": 1.0}
        ) as writer:
            for number in range(samples):
                writer.add(random_sample(f"{name}-{number}"))
            writer.finish()
        made.append(str(folder))
    return made


def read(urls: list[str], steps: int, rank: int, world_size: int, cursor: Cursor) -> list[list[str]]:
    dataset = Dataset.open(urls, ["train"], [2, 1])
    order = order_of(dataset, seed=5, lanes=4, global_batch=24, window_shards=2)
    with Stream(dataset, order, ["image"], rank=rank, world_size=world_size, cursor=cursor) as stream:
        batches = list(islice(stream, steps))
    for batch in batches:
        for at, key in enumerate(batch.keys):
            assert np.array_equal(batch.members["image"][at].numpy(), random_sample(key).image)
    return [batch.keys for batch in batches]


def test_a_mixture_streams_in_proportion_the_same_for_every_world_size_and_restart(urls: list[str]) -> None:
    steps = 16
    alone = read(urls, steps, 0, 1, Cursor())
    for keys in alone:
        assert sum(key.startswith("large") for key in keys) == 16
    rounds = Counter(key for keys in alone for key in keys if key.startswith("small"))
    # 16 steps take 128 of the small dataset, whose 20 samples all come once in each of its rounds.
    assert len(rounds) == 20
    assert min(rounds.values()) == 6
    assert max(rounds.values()) == 7
    for world_size in (2, 4):
        ranks = [read(urls, steps, rank, world_size, Cursor()) for rank in range(world_size)]
        assert [[key for rank in ranks for key in rank[step]] for step in range(steps)] == alone
    assert read(urls, steps - 9, 0, 2, Cursor(*divmod(9, 110 // 24))) == [keys[:12] for keys in alone[9:]]


def test_epochs_of_the_draws_are_the_datasets_own(urls: list[str]) -> None:
    dataset = Dataset.open(urls, ["train"], [2, 1])
    order = order_of(dataset, seed=5, lanes=4, global_batch=24, window_shards=2)
    seen: set[tuple[str, int]] = set()
    with Stream(dataset, order, ["image"], rank=0, world_size=1, cursor=Cursor()) as stream:
        for batch in islice(stream, 12):
            for place in zip(batch.keys, batch.epochs.tolist(), strict=True):
                assert place not in seen
                seen.add(place)


def test_images_alone_may_lie_beside_pairs_where_only_images_are_read(urls: list[str], tmp_path: Path) -> None:
    with ShardWriter(
        str(tmp_path), IMAGE, None, False, {"kind": "images"}, samples_per_shard=10, split_fractions={"train": 1.0}
    ) as writer:
        for number in range(30):
            sample = random_sample(f"alone-{number}")
            writer.add(replace(sample, spectrum=None, ivar=None))
        writer.finish()
    dataset = Dataset.open([urls[0], str(tmp_path)], ["train"])
    order = order_of(dataset, seed=5, lanes=4, global_batch=24, window_shards=2)
    with Stream(dataset, order, ["image"], rank=0, world_size=1, cursor=Cursor()) as stream:
        keys = {key for batch in islice(stream, order.steps_per_epoch) for key in batch.keys}
    assert {key.split("-")[0] for key in keys} == {"large", "alone"}
    with pytest.raises(DataError, match=r"spectrum: absent"):
        Stream(dataset, order, ["image", "spectrum"], rank=0, world_size=1, cursor=Cursor())
