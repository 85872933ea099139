"""A run's diary on a real S3 server: several writers at once, and a server that is away."""

from __future__ import annotations

import threading
import time

import pytest

from astroclip_dist.store import Store
from astroclip_dist.train.event_log import EventLog, read_events
from tests.system.conftest import RealObjectStore

DEADLINE_S = 2.0


@pytest.fixture
def url(object_store: RealObjectStore, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return object_store.create_bucket(request.node.name.replace("_", "-")[:60]) + "/run"


def test_writers_at_once_lose_nothing_and_keep_their_order(url: str) -> None:
    def write(who: int) -> None:
        for number in range(15):
            log = EventLog(Store(url))
            log.write("said", who=who, number=number)
            assert log.close() == 0

    writers = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    events = read_events(Store(url))
    assert len(events) == 60
    for who in range(4):
        assert [event["number"] for event in events if event["who"] == who] == list(range(15))


def test_a_server_that_is_away_delays_no_one_and_loses_nothing(object_store: RealObjectStore, url: str) -> None:
    log = EventLog(Store(url, DEADLINE_S))
    log.write("started", step=0)
    while not Store(url).list():
        time.sleep(0.05)
    object_store.kill()
    try:
        began = time.perf_counter()
        for step in range(100):
            log.write("saved", step=step)
        assert time.perf_counter() - began < 0.1
        other = EventLog(Store(url, DEADLINE_S))
        other.write("hung", message="rank 1 hangs")
        began = time.monotonic()
        assert other.close(deadline_s=0.5) == 1
        assert time.monotonic() - began < 2
    finally:
        object_store.restart()
    assert log.close() == 0
    steps = [event["step"] for event in read_events(Store(url)) if event["event"] == "saved"]
    assert steps == list(range(100))
