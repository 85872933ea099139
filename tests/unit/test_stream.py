"""Streaming: the right samples with the right content, for every world size, from any cursor, and named faults."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from astroclip_dist.config.run import Reading
from astroclip_dist.data.ordering.order import Cursor, Order
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.streaming.stream import Batch, Stream
from astroclip_dist.errors import DataError
from tests.random_survey import random_sample, write_random_survey

SAMPLES, GLOBAL_BATCH, LANES = 230, 24, 8


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("random-survey")
    write_random_survey(str(folder), SAMPLES, samples_per_shard=20)
    return folder.as_uri()


def read(
    url: str,
    steps: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    cursor: Cursor = Cursor(),  # noqa: B008
    threads: int = 2,
) -> list[Batch]:
    dataset = Dataset.open([url], ["train"])
    order = Order(dataset.shard_samples, seed=3, lanes=LANES, global_batch=GLOBAL_BATCH, window_shards=2)
    members = ["image", "spectrum", "ivar"]
    reading = Reading(threads=threads)
    with Stream(dataset, order, members, rank=rank, world_size=world_size, cursor=cursor, reading=reading) as stream:
        return list(islice(stream, steps))


def test_samples_carry_their_own_content(url: str) -> None:
    for batch in read(url, 3):
        for at, key in enumerate(batch.keys):
            expected = random_sample(key)
            assert np.array_equal(batch.members["image"][at].numpy(), expected.image)
            assert np.array_equal(batch.members["spectrum"][at].numpy(), expected.spectrum)
            assert np.array_equal(batch.members["ivar"][at].numpy(), expected.ivar)


@pytest.mark.parametrize("members", [["ivar", "image"], ["image", "ivar"], ["spectrum"]])
def test_members_are_read_in_any_order_and_choice(url: str, members: list[str]) -> None:
    dataset = Dataset.open([url], ["train"])
    order = Order(dataset.shard_samples, seed=3, lanes=LANES, global_batch=GLOBAL_BATCH, window_shards=2)
    with Stream(dataset, order, members, rank=0, world_size=1, cursor=Cursor()) as stream:
        batch = next(stream)
    assert list(batch.members) == members
    for at, key in enumerate(batch.keys):
        for member in members:
            assert np.array_equal(batch.members[member][at].numpy(), getattr(random_sample(key), member))


def test_stream_follows_the_order_across_epochs(url: str) -> None:
    dataset = Dataset.open([url], ["train"])
    order = Order(dataset.shard_samples, seed=3, lanes=LANES, global_batch=GLOBAL_BATCH, window_shards=2)
    indexes = [shard.read_index() for shard in dataset.shards]
    for batch in read(url, 2 * order.steps_per_epoch + 1):
        pairs = order.step_samples(batch.cursor.epoch, batch.cursor.step).reshape(-1, 2)
        assert batch.keys == [indexes[shard].keys[row] for shard, row in pairs]


def global_batches(url: str, steps: int, world_size: int, threads: int, cursor: Cursor = Cursor()) -> list[bytes]:  # noqa: B008
    """Everything in the batches of all ranks, in rank order."""
    ranks = [
        read(url, steps, rank=rank, world_size=world_size, cursor=cursor, threads=threads) for rank in range(world_size)
    ]
    return [
        b"".join(
            part
            for batches in ranks
            for key, *arrays in zip(batches[step].keys, *batches[step].members.values(), strict=True)
            for part in (key.encode(), *(array.numpy().tobytes() for array in arrays))
        )
        for step in range(steps)
    ]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_global_batches_are_the_same_for_every_world_size_and_thread_count(
    url: str, world_size: int, threads: int
) -> None:
    # Two epochs of 9 steps; after the fifth step another world size goes on.
    alone = global_batches(url, 12, 1, 2)
    assert global_batches(url, 5, world_size, threads) == alone[:5]
    assert global_batches(url, 7, 8 // world_size, threads, cursor=Cursor(0, 5)) == alone[5:]


@pytest.mark.parametrize("step", [1, 4, 8])
def test_any_cursor_continues_exactly(url: str, step: int) -> None:
    through = read(url, 14)
    resumed = read(url, 14 - step, cursor=through[step].cursor)
    for before, after in zip(through[step:], resumed, strict=True):
        assert before.cursor == after.cursor
        assert before.keys == after.keys
        assert np.array_equal(before.members["image"], after.members["image"])


@pytest.mark.parametrize("steps", [1, 7, 15])
def test_a_stream_ends_after_the_steps_that_were_asked_for(url: str, steps: int) -> None:
    dataset = Dataset.open([url], ["train"])
    order = Order(dataset.shard_samples, seed=3, lanes=LANES, global_batch=GLOBAL_BATCH, window_shards=2)
    with Stream(dataset, order, ["image"], rank=0, world_size=1, cursor=Cursor(0, 4), steps=steps) as stream:
        keys = [batch.keys for batch in stream]
    assert keys == [batch.keys for batch in read(url, steps, cursor=Cursor(0, 4))]


def test_every_sample_once_an_epoch(url: str) -> None:
    batches = [batch for batch in read(url, 9) if batch.cursor.epoch == 0]
    keys = [key for batch in batches for key in batch.keys]
    assert len(set(keys)) == len(keys) > SAMPLES - GLOBAL_BATCH


def corrupt_copy(url: str, folder: Path, name: str, at: int | None) -> str:
    """A copy of the dataset with one byte of a file flipped, or the file removed."""
    source = Path(url.removeprefix("file://"))
    for path in source.iterdir():
        data = bytearray(path.read_bytes())
        if path.name == name:
            if at is None:
                continue
            data[at] ^= 1
        (folder / path.name).write_bytes(data)
    return folder.as_uri()


def test_flipped_byte_names_shard_sample_and_rank(url: str, tmp_path: Path) -> None:
    broken = corrupt_copy(url, tmp_path, "train-000002.tar", 2_000)
    with pytest.raises(DataError, match=r"rank 0, .*train-000002\.tar: sample random-\d+: image: crc32"):
        read(broken, 18)  # two epochs: one may drop the sample


def test_missing_index_is_named(url: str, tmp_path: Path) -> None:
    broken = corrupt_copy(url, tmp_path, "train-000001.idx", None)
    with pytest.raises(DataError, match=r"lane \d.*train-000001\.idx: the shard's index is missing"):
        read(broken, 9)


def test_truncated_shard_is_named(url: str, tmp_path: Path) -> None:
    broken = corrupt_copy(url, tmp_path, "none", None)
    shard = tmp_path / "train-000003.tar"
    shard.write_bytes(shard.read_bytes()[:30_000])
    with pytest.raises(DataError, match=r"train-000003\.tar: sample random-\d+: \w+: \d+ bytes instead of \d+"):
        read(broken, 9)


def test_dataset_without_the_split_or_the_member(url: str) -> None:
    with pytest.raises(DataError, match=r"split val: no samples.*'train': 230"):
        Dataset.open([url], ["val"])
