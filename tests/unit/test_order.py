"""The sample order: exactly once an epoch, the same for every world size, seekable."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astroclip_dist.data.draws import permutation, stream_key, uniform
from astroclip_dist.data.ordering.order import Cursor, Order
from astroclip_dist.data.streaming.window import needs
from astroclip_dist.errors import ConfigError


@st.composite
def orders(draw: st.DrawFn) -> Order:
    lanes = draw(st.sampled_from([1, 2, 4, 6]))
    global_batch = lanes * draw(st.integers(1, 5))
    shards = draw(st.lists(st.integers(1, 40), min_size=1, max_size=30))
    while sum(shards) // lanes < global_batch // lanes:
        shards.append(40)
    return Order(
        np.array(shards),
        seed=draw(st.integers(0, 2**32 - 1)),
        lanes=lanes,
        global_batch=global_batch,
        window_shards=draw(st.integers(1, 4)),
    )


@settings(deadline=None, max_examples=400)
@given(order=orders(), epoch=st.integers(0, 3))
def test_every_sample_at_most_once_and_the_dropped_remainder_is_smaller_than_a_batch(order: Order, epoch: int) -> None:
    seen = np.concatenate([order.step_samples(epoch, step).reshape(-1, 2) for step in range(order.steps_per_epoch)])
    assert len(np.unique(seen, axis=0)) == len(seen)
    assert int(order.shard_samples.sum()) - len(seen) < order.global_batch
    for shard, row in seen:
        assert 0 <= row < order.shard_samples[shard]


@settings(deadline=None, max_examples=400)
@given(order=orders())
def test_windows_tile_their_lane(order: Order) -> None:
    for lane in range(order.lanes):
        windows = order.windows(0, lane)
        assert [w.start for w in windows] == np.cumsum([0, *(len(w) for w in windows)])[:-1].tolist()
        assert sum(map(len, windows)) == order.lane_length
        for window in windows:
            piece, row = order.window_samples(window)
            every = {(p.shard, r) for p in window.pieces for r in range(p.start, p.stop)}
            assert {(window.pieces[i].shard, r) for i, r in zip(piece, row, strict=True)} == every


@settings(deadline=None, max_examples=2000)
@given(order=orders(), step=st.integers(0, 10**6))
def test_ranks_of_every_world_size_together_read_the_global_batch_in_its_order(order: Order, step: int) -> None:
    cursor = Cursor(step // order.steps_per_epoch % 5, step % order.steps_per_epoch)
    whole = order.step_samples(cursor.epoch, cursor.step)
    assert whole.reshape(-1, 2).shape[0] == order.global_batch
    for world_size in (size for size in range(1, order.lanes + 1) if order.lanes % size == 0):
        mine = order.lanes // world_size
        read: list[tuple[int, int]] = []
        for rank in range(world_size):
            taken: dict[int, list[tuple[int, int]]] = {lane: [] for lane in range(rank * mine, (rank + 1) * mine)}
            for need in needs(order, list(taken), cursor):
                if all(len(samples) >= order.samples_per_lane_step for samples in taken.values()):
                    break
                piece, row = order.window_samples(need.window)
                shards = [need.window.pieces[number].shard for number in piece[need.part]]
                taken[need.lane] += zip(shards, row[need.part].tolist(), strict=True)
            for samples in taken.values():
                read += samples[: order.samples_per_lane_step]
        assert read == [(int(shard), int(row)) for shard, row in whole.reshape(-1, 2)]


def test_epochs_and_seeds_differ_and_repeat_exactly() -> None:
    sizes = np.full(12, 50)
    first = Order(sizes, seed=1, lanes=4, global_batch=32, window_shards=2)
    again = Order(sizes, seed=1, lanes=4, global_batch=32, window_shards=2)
    other = Order(sizes, seed=2, lanes=4, global_batch=32, window_shards=2)
    assert np.array_equal(first.step_samples(3, 5), again.step_samples(3, 5))
    assert not np.array_equal(first.step_samples(3, 5), first.step_samples(4, 5))
    assert not np.array_equal(first.step_samples(3, 5), other.step_samples(3, 5))


def test_order_is_fixed_for_good() -> None:
    """A release that changed these numbers would silently break the resume of every run in progress."""
    order = Order(np.array([5, 7, 4, 6]), seed=7, lanes=2, global_batch=4, window_shards=2)
    assert order.steps_per_epoch == 5
    assert permutation(stream_key("shards", 7, 0), 4).tolist() == [0, 2, 1, 3]
    assert order.step_samples(0, 3).reshape(-1, 2).tolist() == [[0, 2], [2, 1], [3, 2], [3, 0]]


def test_cursor_moves_through_epochs() -> None:
    order = Order(np.array([10]), seed=0, lanes=1, global_batch=5, window_shards=1)
    assert order.next(Cursor(0, 0)) == Cursor(0, 1)
    assert order.next(Cursor(0, 1)) == Cursor(1, 0)


def test_epoch_without_a_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="11 samples: an epoch would have no step"):
        Order(np.array([11]), seed=0, lanes=4, global_batch=16, window_shards=1)


def test_draws_depend_on_the_sample_not_on_its_company() -> None:
    ids = np.array([3, 2**63 + 5, 17], dtype=np.uint64)
    key = stream_key("crop", 0, 4)
    together = uniform(key, ids, 6)
    assert np.array_equal(together[1:2], uniform(key, ids[1:2], 6))
    assert np.array_equal(together[:, :2], uniform(key, ids, 2))
    assert not np.array_equal(together, uniform(stream_key("crop", 0, 5), ids, 6))


def test_draws_are_uniform_and_uncorrelated() -> None:
    draws = uniform(stream_key("noise", 1), np.arange(20_000, dtype=np.uint64), 4)
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    expected = draws.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi-square, 19 degrees of freedom: p = 1e-4
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.03
