"""The faulty proxy does what it says, and the store survives each fault or names it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from astroclip_dist.errors import StorageError
from astroclip_dist.store import Store
from tests.system.conftest import RealObjectStore
from tests.system.fault_proxy import FaultProxy, Kind
from tests.system.test_store import use

CONTENT = os.urandom(3 << 20)
MIDDLE = slice(1 << 20, 2 << 20)
CUT_BODIES: tuple[Kind, ...] = ("reset_in_body", "short_body")
BROKEN_ANSWERS: tuple[Kind, ...] = ("internal_error", "slow_down", "reset")


@pytest.fixture(scope="module")
def bucket(object_store: RealObjectStore) -> str:
    return object_store.create_bucket("fault-proxy-tests")


@pytest.fixture
def proxy(object_store: RealObjectStore) -> Iterator[FaultProxy]:
    with FaultProxy(object_store.endpoint, seed=7) as proxy:
        yield proxy


@pytest.fixture
def store(proxy: FaultProxy, object_store: RealObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Through the proxy, with an object in it."""
    use(monkeypatch, object_store.trainer, AWS_ENDPOINT_URL=proxy.endpoint)
    store = Store(bucket, deadline_s=30)
    store.put("object", CONTENT)
    return store


def test_everything_passes_when_nothing_is_injected(store: Store, proxy: FaultProxy) -> None:
    assert store.read("object") == CONTENT
    assert bytes(store.read_range("object", MIDDLE.start, MIDDLE.stop)) == CONTENT[MIDDLE]
    assert store.exists("object")
    assert not store.exists("nothing")
    store.put("big", CONTENT * 5)  # in parts
    assert store.read("big") == CONTENT * 5
    assert ("object", len(CONTENT)) in store.list()
    store.delete(["big"])
    assert set(proxy.counts) == {"requests"}


@pytest.mark.parametrize("kind", [*BROKEN_ANSWERS, *CUT_BODIES])
def test_reads_survive(kind: Kind, store: Store, proxy: FaultProxy) -> None:
    proxy.inject(kind, count=3)
    assert bytes(store.read_range("object", MIDDLE.start, MIDDLE.stop)) == CONTENT[MIDDLE]
    assert proxy.counts[kind] == 3
    proxy.inject(kind, count=3)
    assert store.read("object") == CONTENT
    assert proxy.counts[kind] == 6


@pytest.mark.parametrize("kind", BROKEN_ANSWERS)
def test_writes_survive(kind: Kind, store: Store, proxy: FaultProxy) -> None:
    proxy.inject(kind, count=3, method="PUT")
    store.put("written", CONTENT)
    assert proxy.counts[kind] == 3
    assert store.read("written") == CONTENT


@pytest.mark.parametrize("kind", [*BROKEN_ANSWERS, *CUT_BODIES])
def test_a_fault_without_end_is_named_within_the_deadline(
    kind: Kind, store: Store, proxy: FaultProxy, bucket: str
) -> None:
    proxy.inject(kind)
    impatient = Store(bucket, deadline_s=2)
    for read in (lambda: impatient.read("object"), lambda: impatient.read_range("object", 0, 1 << 20)):
        began = time.monotonic()
        with pytest.raises(StorageError, match="fault-proxy-tests/object"):
            read()
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("kind", ["delay", "stall"])
def test_a_slow_answer_is_waited_for(kind: Kind, store: Store, proxy: FaultProxy) -> None:
    proxy.inject(kind, count=1, seconds=1.5)
    began = time.monotonic()
    assert store.read("object") == CONTENT
    assert 1.5 <= time.monotonic() - began < 10


@pytest.mark.parametrize("kind", ["delay", "stall"])
def test_an_answer_that_never_comes_is_named_within_the_deadline(
    kind: Kind, store: Store, proxy: FaultProxy, bucket: str
) -> None:
    proxy.inject(kind, seconds=60)
    began = time.monotonic()
    with pytest.raises(StorageError, match="fault-proxy-tests/object"):
        Store(bucket, deadline_s=2).read_range("object", 0, 1 << 20)
    assert time.monotonic() - began < 10


def test_a_flipped_bit_passes_the_store(store: Store, proxy: FaultProxy) -> None:
    """Nothing in HTTP tells: whoever reads has to compare checksums."""
    proxy.inject("flipped_bit", count=1)
    got = store.read("object")
    different = [(a ^ b).bit_count() for a, b in zip(got, CONTENT, strict=True) if a != b]
    assert different == [1]
    assert store.read("object") == CONTENT


def test_an_outage_is_waited_for(store: Store, proxy: FaultProxy) -> None:
    store.read("object")
    proxy.outage(seconds=3)
    began = time.monotonic()
    assert store.read("object") == CONTENT
    assert 2.5 <= time.monotonic() - began < 15


def test_an_outage_longer_than_the_deadline_is_named(store: Store, proxy: FaultProxy, bucket: str) -> None:
    proxy.outage(seconds=60)
    began = time.monotonic()
    with pytest.raises(StorageError, match="fault-proxy-tests/object"):
        Store(bucket, deadline_s=2).read("object")
    assert time.monotonic() - began < 10


def test_faults_hit_requests_by_seed_not_by_time(object_store: RealObjectStore, store: Store, bucket: str) -> None:
    def hits(seed: int, names: list[str], monkeypatch: pytest.MonkeyPatch) -> list[int]:
        with FaultProxy(object_store.endpoint, seed) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            proxy.inject("internal_error", probability=0.3)
            counts = {}
            for name in names:
                before = proxy.counts["internal_error"]
                Store(bucket, deadline_s=30).read(name)
                counts[name] = proxy.counts["internal_error"] - before
        return [counts[name] for name in sorted(names)]

    names = [f"hit-{number}" for number in range(12)]
    for name in names:
        store.put(name, b"1")
    with pytest.MonkeyPatch.context() as patch:
        one = hits(1, names, patch)
        assert hits(1, names[::-1], patch) == one
        assert hits(2, names, patch) != one
        assert sum(one) > 0
