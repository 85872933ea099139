"""Damaged samples and shards: put aside, counted once, their places filled the same way whatever the world size."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from astroclip_dist.data.ordering.mixture import order_of
from astroclip_dist.data.ordering.order import Cursor
from astroclip_dist.data.reading.quarantine import BadData, Quarantine
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.streaming.stream import Batch, Stream
from astroclip_dist.errors import DataError
from tests.random_survey import random_sample, write_random_survey

SAMPLES, LANES, GLOBAL_BATCH = 240, 4, 24
STEPS = 20  # two epochs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_random_survey(str(tmp_path), SAMPLES, samples_per_shard=20)
    return tmp_path


def read(
    folder: Path,
    quarantine: Quarantine,
    *,
    rank: int = 0,
    world_size: int = 1,
    window_shards: int = 2,
    cursor: Cursor = Cursor(),  # noqa: B008
    steps: int = STEPS,
) -> list[Batch]:
    dataset = Dataset.open([str(folder)], ["train"])
    order = order_of(dataset, seed=3, lanes=LANES, global_batch=GLOBAL_BATCH, window_shards=window_shards)
    with Stream(
        dataset, order, ["image"], rank=rank, world_size=world_size, cursor=cursor, quarantine=quarantine
    ) as stream:
        return list(islice(stream, steps))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def check_contents(batches: list[Batch]) -> None:
    for batch in batches:
        for at, key in enumerate(batch.keys):
            assert np.array_equal(batch.members["image"][at].numpy(), random_sample(key).image)


def test_a_bad_sample_is_replaced_by_one_of_its_window_and_counted_once(folder: Path) -> None:
    sound = read(folder, Quarantine())
    flip(folder / "train-000002.tar", 2_000)
    quarantine = Quarantine()
    batches = read(folder, quarantine)
    check_contents(batches)
    (bad,) = quarantine
    assert bad.samples == 1
    assert bad.key
    assert "train-000002.tar" in bad.shard
    replaced = 0
    for before, after in zip(sound, batches, strict=True):
        differs = [(a, b) for a, b in zip(before.keys, after.keys, strict=True) if a != b]
        replaced += len(differs)
        assert all(a == bad.key for a, _ in differs)
    assert replaced in (1, 2)  # an epoch may have dropped it


@pytest.mark.parametrize("window_shards", [1, 2])
@pytest.mark.parametrize("what", ["tar", "idx", "short"])
def test_a_bad_shard_is_replaced_the_same_for_every_world_size_and_restart(
    folder: Path, what: str, window_shards: int
) -> None:
    tar, index = folder / "train-000004.tar", folder / "train-000004.idx"
    if what == "tar":
        tar.unlink()
    elif what == "idx":
        flip(index, index.stat().st_size // 2)
    else:
        tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    quarantine = Quarantine()
    alone = read(folder, quarantine, window_shards=window_shards)
    check_contents(alone)
    assert quarantine.samples == 20 if what != "short" else 8 <= quarantine.samples <= 12
    for world_size in (2, 4):
        ranks = [
            read(folder, Quarantine(), rank=rank, world_size=world_size, window_shards=window_shards)
            for rank in range(world_size)
        ]
        for step, batch in enumerate(alone):
            assert [key for rank in ranks for key in rank[step].keys] == batch.keys
    resumed = read(folder, quarantine, window_shards=window_shards, cursor=alone[7].cursor, steps=STEPS - 7)
    assert [batch.keys for batch in resumed] == [batch.keys for batch in alone[7:]]


def test_what_is_in_quarantine_is_not_read_again_though_it_was_mended(folder: Path) -> None:
    path = folder / "train-000002.tar"
    flip(path, 2_000)
    quarantine = Quarantine()
    before = read(folder, quarantine)
    flip(path, 2_000)
    after = read(folder, Quarantine.decode(quarantine.encode()))
    assert [batch.keys for batch in after] == [batch.keys for batch in before]


def test_a_dataset_without_any_readable_sample_is_an_error(folder: Path) -> None:
    for path in folder.glob("*.tar"):
        path.unlink()
    with pytest.raises(DataError, match=r"rank 0, lane \d.*no sample of the lane can be read"):
        read(folder, Quarantine())


def test_without_quarantine_the_first_bad_sample_is_an_error(folder: Path) -> None:
    flip(folder / "train-000002.tar", 2_000)
    dataset = Dataset.open([str(folder)], ["train"])
    order = order_of(dataset, seed=3, lanes=LANES, global_batch=GLOBAL_BATCH, window_shards=2)
    with (
        Stream(dataset, order, ["image"], rank=0, world_size=1, cursor=Cursor()) as stream,
        pytest.raises(DataError, match=r"rank 0, lane \d, .*train-000002\.tar: sample random-\d+: image: crc32"),
    ):
        list(islice(stream, STEPS))


def test_a_quarantine_counts_samples_and_knows_whole_shards() -> None:
    quarantine = Quarantine([BadData("a.tar", "k1", 1, "x")])
    assert not quarantine.add(BadData("a.tar", "k1", 1, "again"))
    assert quarantine.add(BadData("b.tar", "", 20, "y"))
    assert ("b.tar", "any") in quarantine
    assert ("a.tar", "k2") not in quarantine
    assert quarantine.samples == 21
    # What two ranks found, a sample here and its whole shard there, is the same in the end, in whatever order.
    sample, shard = BadData("c.tar", "k", 1, "x"), BadData("c.tar", "", 20, "y")
    first, second = Quarantine([sample, shard]), Quarantine([shard, sample])
    assert len(first) == len(second) == 2
    assert not first.unknown_to(second)
    assert Quarantine.decode(quarantine.encode()).encode() == quarantine.encode()
