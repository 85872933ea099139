"""The run's diary: written in order by several at once, without anybody waiting for it."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from astroclip_dist.errors import StorageError
from astroclip_dist.store import Store
from astroclip_dist.train.event_log import EVENTS_FILE, EventLog, append, read_events
from tests.until import until

WRITER = """
import sys
from astroclip_dist.store import Store
from astroclip_dist.train.event_log import EventLog
url, who, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
for number in range(count):
    log = EventLog(Store(url))
    log.write("said", who=who, number=number)
    assert log.close() == 0
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "run")


def test_events_go_on_where_they_were(store: Store) -> None:
    with EventLog(store) as log:
        log.write("started", step=0)
    with EventLog(store) as log:
        log.write("resumed", step=5)
        log.write("saved", step=10, checkpoint="checkpoints/step-000000010")
    assert [(event["event"], event["step"]) for event in read_events(store)] == [
        ("started", 0),
        ("resumed", 5),
        ("saved", 10),
    ]
    assert all(event["time"].endswith("Z") for event in read_events(store))
    assert store.read(EVENTS_FILE).count(b"\n") == 3


def test_nothing_is_written_before_the_first_event(store: Store) -> None:
    assert EventLog(store).close() == 0
    assert store.list() == []


def test_writers_at_once_lose_nothing_and_keep_their_order(tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, url, who, "60"]) for who in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    events = read_events(Store(url))
    for who in "ab":
        assert [event["number"] for event in events if event["who"] == who] == list(range(60))
    assert len({event["who"] for event in events[:100]}) == 2, "one wrote after the other: nothing was tested"


@pytest.mark.parametrize("url", ["memory:///", None])
def test_many_events_at_once_are_few_writes(url: str | None, tmp_path: Path) -> None:
    store = Store(url or tmp_path)
    with EventLog(store) as log:
        for number in range(500):
            log.write("said", number=number)
    assert [event["number"] for event in read_events(store)] == list(range(500))


def test_the_caller_never_waits_and_events_arrive_when_the_storage_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Where a folder is to be, a file is in the way.
    (tmp_path / "run").write_text("")
    log = EventLog(Store(tmp_path / "run"))
    began = time.perf_counter()
    for number in range(100):
        log.write("said", number=number)
    assert time.perf_counter() - began < 0.1
    while "events wait in memory" not in caplog.text:
        time.sleep(0.01)
    (tmp_path / "run").unlink()
    assert log.close() == 0
    assert [event["number"] for event in read_events(Store(tmp_path / "run"))] == list(range(100))
    assert caplog.text.count("events wait in memory") == 1


def test_what_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").write_text("")
    log = EventLog(Store(tmp_path / "run"))
    log.write("failed", error="a reason")
    began = time.monotonic()
    assert log.close(deadline_s=0.7) == 1
    assert time.monotonic() - began < 2
    assert '"error": "a reason"' in caplog.records[-1].getMessage()
    assert caplog.records[-1].levelno == logging.ERROR
    assert log._thread is not None
    log._thread.join(3)
    assert not log._thread.is_alive()


def test_a_clock_that_jumps_reorders_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import astroclip_dist.train.event_log as module

    class Clock(datetime):
        hours = iter((10, 15, 9, 10))

        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime(2026, 11, 22, next(cls.hours), tzinfo=tz)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "datetime", Clock)
    for number in range(4):
        with EventLog(store) as log:
            log.write("said", number=number)
    events = read_events(store)
    assert [event["number"] for event in events] == [0, 1, 2, 3]
    assert [event["time"][11:13] for event in events] == ["10", "15", "09", "10"]


def test_half_a_line_is_left_out_and_spoils_no_other(store: Store) -> None:
    append(store, EVENTS_FILE, b'{"event": "started"}\n')
    path = store.local_path(EVENTS_FILE)
    assert path is not None
    with path.open("ab") as file:
        file.write(b'{"event": "sa')
    assert [event["event"] for event in read_events(store)] == ["started"]
    append(store, EVENTS_FILE, b'{"event": "resumed"}\n')
    assert [event["event"] for event in read_events(store)] == ["started", "resumed"]


def test_a_write_that_was_made_although_its_answer_was_lost_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory:///")
    append(store, "log", b"first\n")
    replace = Store.replace
    answers = []

    def lossy(self: Store, name: str, data: bytes, tag: str) -> str:
        answers.append(tag)
        if len(answers) == 1:
            new = replace(self, name, data, tag)
            # Somebody else writes on before the client tries again.
            replace(self, name, data + b"other\n", new)
        return replace(self, name, data, tag)

    monkeypatch.setattr(Store, "replace", lossy)
    append(store, "log", b"second\n")
    assert store.read("log") == b"first\nsecond\nother\n"


@pytest.mark.parametrize("first", [b"", b"first\n"])
def test_nor_is_one_after_which_the_storage_was_away(monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    """Until the request was given up; the log tries again, with what has been said since."""
    store = Store("memory:///")
    write = "replace" if first else "put"
    if first:
        append(store, EVENTS_FILE, first)
    request, answers = getattr(Store, write), []

    def lossy(self: Store, *arguments: Any, **options: Any) -> Any:
        answers.append(request(self, *arguments, **options))
        if len(answers) == 1:
            log.write("saved", step=10)
            raise StorageError(EVENTS_FILE, "no answer", "Look at the network.")
        return answers[-1]

    monkeypatch.setattr(Store, write, lossy)
    log = EventLog(store)
    log.write("restarting", attempt=1)
    until(lambda: b"saved" in store.read(EVENTS_FILE) if store.exists(EVENTS_FILE) else False)
    assert log.close() == 0
    assert [event["event"] for event in read_events(store)] == ["restarting", "saved"]
