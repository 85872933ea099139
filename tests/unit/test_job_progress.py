"""How far a run is, by what its folder says, whatever state that is in."""

from __future__ import annotations

import json
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from astroclip_dist.store import Store
from astroclip_dist.train.event_log import EVENTS_FILE
from astroclip_dist.train.holding import HOLDER_FILE, hold, stop_at_once
from astroclip_dist.train.run_folder import PROGRESS_FILE
from launchers.jobs.progress import RunProgress, read_progress

NOW = datetime.now(UTC)


def at(seconds_ago: float) -> str:
    return (NOW - timedelta(seconds=seconds_ago)).strftime("%Y-%m-%dT%H:%M:%SZ")


def make_run(folder: Path, *events: dict[str, Any], **said: Any) -> Store:
    run = Store(folder)
    if events:
        run.put(EVENTS_FILE, b"".join(json.dumps(event).encode() + b"\n" for event in events))
    if said:
        run.put(PROGRESS_FILE, json.dumps(said).encode())
    return run


def progress_of(run: Store) -> RunProgress:
    return read_progress([run.url])[run.url]


STARTED = {"time": at(300), "event": "started", "step": 0, "steps": 40, "world_size": 2}


def test_a_run_that_goes_on_tells_its_rate(tmp_path: Path) -> None:
    rate = {"samples_per_second": 812.5, "eta_s": 120.0, "loss": 2.5}
    progress = progress_of(make_run(tmp_path, STARTED, step=33, steps=40, time=at(10), **rate))
    assert progress == RunProgress(
        step=33,
        steps=40,
        time=at(10),
        **rate,
        last_event="started at step 0 of 40 on 2 workers",
        last_event_time=at(300),
    )


def test_without_what_a_run_says_its_events_tell(tmp_path: Path) -> None:
    saved = {"time": at(60), "event": "saved", "step": 20}
    again = {"time": at(50), "event": "restarting", "cause": "rank 1 died"}
    progress = progress_of(make_run(tmp_path, STARTED, saved, again))
    assert (progress.step, progress.steps, progress.restarts, progress.time) == (20, 40, 1, None)
    assert progress.last_event == "restarted: rank 1 died"
    assert not progress.finished


def test_after_a_restart_the_step_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    resumed = {"time": at(5), "event": "resumed", "step": 30, "steps": 40, "world_size": 1}
    assert progress_of(make_run(tmp_path / "a", STARTED, resumed, step=33, steps=40, time=at(10))).step == 30
    assert progress_of(make_run(tmp_path / "b", STARTED, resumed, step=31, steps=40, time=at(1))).step == 31


def test_a_finished_run(tmp_path: Path) -> None:
    finished = {"time": at(5), "event": "finished", "step": 40}
    progress = progress_of(make_run(tmp_path, STARTED, finished, step=39, steps=40, time=at(6)))
    assert (progress.finished, progress.step, progress.last_event) == (True, 40, "finished at step 40")


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    assert progress_of(Store(tmp_path / "nothing")) == RunProgress()


def test_who_holds_a_run_on_this_machine_is_alive(tmp_path: Path) -> None:
    run = make_run(tmp_path, STARTED)
    with hold(run, "local", stop_at_once):
        progress = progress_of(run)
        assert progress.alive
        assert str(progress.held_by).startswith(f"the local launcher on {socket.gethostname()}, process ")
    progress = progress_of(run)
    assert (progress.alive, progress.held_by) == (False, None)
    # Left by a process that was killed: nobody has the lock.
    run.put(HOLDER_FILE, b"{}")
    assert not progress_of(run).alive


@pytest.mark.parametrize(
    ("file", "content", "trouble"),
    [
        (PROGRESS_FILE, b"{", "progress.json: damaged. The run writes it anew"),
        (PROGRESS_FILE, b'{"step": 1, "steps": 2, "time": "yesterday"}', "progress.json: damaged"),
        (EVENTS_FILE, b'["no", "event"]\n', "not understood (AttributeError"),
    ],
)
def test_a_folder_that_holds_something_else_is_said_and_hides_no_other(
    file: str, content: bytes, trouble: str, tmp_path: Path
) -> None:
    damaged, sound = make_run(tmp_path / "a", STARTED), make_run(tmp_path / "b", STARTED)
    damaged.put(file, content)
    found = read_progress([damaged.url, sound.url])
    assert trouble in str(found[damaged.url].trouble)
    assert found[sound.url].step == 0


def test_a_storage_that_does_not_answer_takes_no_longer_than_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = make_run(tmp_path, STARTED)
    # It takes connections, and says nothing.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        silents = [f"s3://bucket/run-{number}" for number in range(40)]
        began = time.monotonic()
        found = read_progress([*silents[:5], sound.url, *silents[5:]], deadline_s=1.0)
        took = time.monotonic() - began
    assert took < 2
    assert found[sound.url].step == 0
    assert all(found[url].trouble for url in silents)
