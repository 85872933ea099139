"""Whole epochs from a real S3 server through a faulty network: no galaxy lost, doubled or changed, in bounded time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
import torch

from astroclip_dist.data.ordering.mixture import order_of
from astroclip_dist.data.ordering.order import Cursor
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.streaming.stream import Batch, Stream
from astroclip_dist.errors import StorageError
from astroclip_dist.store import Store
from tests.random_survey import write_random_survey
from tests.system.conftest import RealObjectStore
from tests.system.fault_proxy import FaultProxy, Kind
from tests.system.test_store import use

SAMPLES, SHARD, LANES, GLOBAL_BATCH = 480, 20, 4, 24
STEPS = SAMPLES // GLOBAL_BATCH  # of an epoch
KINDS: tuple[Kind, ...] = (
    "internal_error",
    "slow_down",
    "reset",
    "reset_in_body",
    "short_body",
    "flipped_bit",
    "delay",
    "stall",
)


@pytest.fixture(scope="module")
def url(object_store: RealObjectStore) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        use(patch, object_store.trainer)
        url = f"{object_store.create_bucket('stream-faults-tests')}/survey"
        write_random_survey(url, SAMPLES, samples_per_shard=SHARD)
        yield url


@pytest.fixture
def proxy(object_store: RealObjectStore, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """What is opened from now on goes through the proxy."""
    with FaultProxy(object_store.endpoint, seed=5) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def open_stream(dataset: Dataset, rank: int = 0, world_size: int = 1) -> Stream:
    order = order_of(dataset, seed=3, lanes=LANES, global_batch=GLOBAL_BATCH, window_shards=2)
    members = ("image", "spectrum", "ivar")
    return Stream(dataset, order, members, rank=rank, world_size=world_size, cursor=Cursor())


def read(url: str, steps: int, rank: int = 0, world_size: int = 1) -> list[Batch]:
    with open_stream(Dataset.open([url], ["train"]), rank, world_size) as stream:
        return list(islice(stream, steps))


@pytest.fixture(scope="module")
def undisturbed(url: str) -> list[Batch]:
    """Two epochs, read from the server itself."""
    batches = read(url, 2 * STEPS)
    for epoch in (batches[:STEPS], batches[STEPS:]):
        assert len({key for batch in epoch for key in batch.keys}) == SAMPLES
    return batches


def check_same(batches: list[Batch], expected: list[Batch]) -> None:
    for mine, theirs in zip(batches, expected, strict=True):
        assert mine.cursor == theirs.cursor
        assert mine.keys == theirs.keys
        for name, tensor in mine.members.items():
            assert torch.equal(tensor, theirs.members[name])


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_with_one_kind_of_fault(kind: Kind, url: str, proxy: FaultProxy, undisturbed: list[Batch]) -> None:
    proxy.inject(kind, probability=0.25, path="train-", seconds=0.2)
    began = time.monotonic()
    check_same(read(url, STEPS), undisturbed[:STEPS])
    assert time.monotonic() - began < 60
    assert proxy.counts[kind] >= 5


def test_two_epochs_of_two_ranks_with_all_kinds_of_faults(
    url: str, proxy: FaultProxy, undisturbed: list[Batch]
) -> None:
    for kind in KINDS:
        proxy.inject(kind, probability=0.06, seconds=0.2)
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda rank: read(url, 2 * STEPS, rank, world_size=2), range(2))
    assert time.monotonic() - began < 90
    joined = [
        dataclasses.replace(
            one,
            keys=one.keys + other.keys,
            members={name: torch.cat([one.members[name], other.members[name]]) for name in one.members},
        )
        for one, other in zip(first, second, strict=True)
    ]
    check_same(joined, undisturbed)
    assert all(proxy.counts[kind] for kind in KINDS), proxy.counts


@pytest.mark.parametrize("seconds", [4.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_an_outage_is_waited_for(seconds: float, url: str, proxy: FaultProxy, undisturbed: list[Batch]) -> None:
    with open_stream(Dataset.open([url], ["train"])) as stream:
        batches = [next(stream)]
        began = time.monotonic()
        proxy.outage(seconds)
        batches += islice(stream, 2 * STEPS - 1)
    assert 0.8 * seconds < time.monotonic() - began < seconds + 30
    check_same(batches, undisturbed)


def test_an_outage_beyond_the_deadline_names_url_shard_lane_and_rank(url: str, proxy: FaultProxy) -> None:
    dataset = Dataset.open([url], ["train"])
    impatient = Store(url, deadline_s=2)
    shards = tuple(dataclasses.replace(shard, store=impatient) for shard in dataset.shards)
    with open_stream(dataclasses.replace(dataset, groups=(shards,)), rank=1, world_size=2) as stream:
        next(stream)
        began = time.monotonic()
        proxy.outage(120)
        with pytest.raises(StorageError, match=rf"rank 1, lane [23], {url}/train-0000\d\d\.(tar|idx): ") as caught:
            list(islice(stream, 4 * STEPS))
    assert time.monotonic() - began < 20
    assert "Check the URL" in str(caught.value)


@pytest.mark.slow
def test_a_connection_that_stalls_is_given_up_and_tried_again(
    url: str, proxy: FaultProxy, undisturbed: list[Batch]
) -> None:
    proxy.inject("stall", count=2, path=".tar", seconds=300)
    began = time.monotonic()
    check_same(read(url, STEPS), undisturbed[:STEPS])
    assert 15 < time.monotonic() - began < 60
