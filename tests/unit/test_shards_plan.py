"""The plan of a build: every key once, in the split of its hash, in full shards, in the order of the source."""

from __future__ import annotations

import io
import itertools
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astroclip_dist.data.stored.manifest import SPLITS, Split, split_of
from astroclip_dist.errors import DataError
from shards.building.plan import Plan, ShardPlan, split_places
from shards.writing.seen_keys import hash_keys
from tests.toy_source import ToySource

FRACTIONS: dict[Split, float] = {"train": 0.6, "val": 0.3, "test": 0.1}


def all_rows(shards: Sequence[ShardPlan], split: Split) -> list[tuple[int, int]]:
    return [
        (partition, int(row))
        for shard in shards
        if shard.split == split
        for partition, rows in shard.parts
        for row in rows
    ]


@given(
    sizes=st.lists(st.integers(0, 40), max_size=12),
    samples_per_shard=st.integers(1, 30),
    shares=st.sampled_from([(1.0, 0.0, 0.0), (0.6, 0.3, 0.1), (0.0, 0.5, 0.5)]),
)
def test_every_key_is_planned_once_in_full_shards(
    sizes: list[int], samples_per_shard: int, shares: tuple[float, float, float]
) -> None:
    source, fractions = ToySource(sizes), dict(zip(SPLITS, shares, strict=True))
    plan = Plan(source, samples_per_shard, fractions)
    shards = sorted(plan.shards(), key=lambda shard: shard.name)
    expected = {
        split: [
            (partition, row)
            for partition in range(len(sizes))
            for row, key in enumerate(source.keys(partition))
            if split_of(key, fractions) == split
        ]
        for split in SPLITS
    }
    for split in SPLITS:
        of_split = [shard for shard in shards if shard.split == split]
        assert all_rows(of_split, split) == expected[split]
        assert [len(shard.keys) for shard in of_split[:-1]] == [samples_per_shard] * (len(of_split) - 1)
        assert [shard.name for shard in of_split] == [f"{split}-{number:06d}" for number in range(len(of_split))]
    for shard in shards:
        assert shard.keys == [source.keys(partition)[row] for partition, rows in shard.parts for row in rows]
    tally = plan.count(io.StringIO())
    assert tally == (sum(sizes), len(shards), 0)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=200))
def test_splits_of_many_keys_are_those_of_each(numbers: list[int]) -> None:
    keys = list(map(str, numbers))
    together = split_places(hash_keys(keys), FRACTIONS)
    assert [SPLITS[place] for place in together] == [split_of(key, FRACTIONS) for key in keys]


def test_a_shard_comes_as_soon_as_it_is_full() -> None:
    read: list[int] = []

    class Watched(ToySource):
        def keys(self, partition: int) -> list[str]:
            read.append(partition)
            return super().keys(partition)

    shards = Plan(Watched([10] * 1000), 20, {"train": 1.0, "val": 0.0, "test": 0.0}).shards()
    assert len(next(shards).keys) == 20
    assert read == [0, 1]


def test_memory_does_not_grow_with_the_galaxies_but_for_their_hashes() -> None:
    def peak(partitions: int) -> int:
        source = ToySource([1000])
        source.sizes = [1000] * partitions
        tracemalloc.start()
        for _ in Plan(source, 100, FRACTIONS).shards():
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small, large = peak(2), peak(60)
    assert large - small < 58_000 * 8 * 3  # a merge holds the hashes twice


def test_a_key_that_comes_twice_is_named_with_both_places() -> None:
    plan = Plan(ToySource([10, 0, 10], twice={13: 4}), 5, FRACTIONS)
    with pytest.raises(DataError, match=r"toy-4: key: came twice: row 4 of partition 0 and row 3 of partition 2"):
        plan.count(io.StringIO())


def test_the_first_of_two_galaxies_with_one_key_can_be_taken() -> None:
    plan = Plan(ToySource([10, 10], twice={13: 4, 7: 4, 19: 18}), 5, FRACTIONS, duplicates="first")
    shards = list(plan.shards())
    keys = list(itertools.chain.from_iterable(shard.keys for shard in shards))
    assert sorted(keys) == sorted({f"toy-{number}" for number in range(20) if number not in (7, 13, 19)})
    assert all((0, 4) in all_rows(shards, shard.split) for shard in shards if "toy-4" in shard.keys)
    assert plan.count(io.StringIO()) == (17, len(shards), 3)


def test_the_digest_tells_rows_partitions_and_keys_apart() -> None:
    def plan(parts: list[tuple[int, list[int]]], keys: list[str]) -> str:
        return ShardPlan("train-000000", "train", [(p, np.array(rows)) for p, rows in parts], keys).digest()

    digests = [
        plan([(0, [1, 2])], ["a", "b"]),
        plan([(1, [1, 2])], ["a", "b"]),
        plan([(0, [1, 3])], ["a", "b"]),
        plan([(0, [1]), (0, [2])], ["a", "b"]),
        plan([(0, [1, 2])], ["a", "c"]),
    ]
    assert len(set(digests)) == len(digests)
    assert digests[0] == plan([(0, [1, 2])], ["a", "b"])
