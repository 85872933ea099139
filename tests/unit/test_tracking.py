"""The tracker on an SQLite database: one run whatever happens, complete and unambiguous records."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
from mlflow import MlflowClient

from astroclip_dist.errors import ConfigError, StorageError
from astroclip_dist.store import Store
from astroclip_dist.train import tracking
from astroclip_dist.train.event_log import EventLog
from astroclip_dist.train.mlflow_run import MlflowRun
from astroclip_dist.train.records import mask, now_ms
from astroclip_dist.train.run_folder import SPOOL_FOLDER
from astroclip_dist.train.spool import Spool
from astroclip_dist.train.tracking import Tracker, send_unsent
from tests.until import until


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def open_tracker(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[], Tracker]:
    def open_it() -> Tracker:
        return Tracker.open(Store(tmp_path / "run"), database, "unit", request.node.name)

    return open_it


def history(database: str, run_id: str | None, key: str) -> list[tuple[int, float]]:
    assert run_id is not None
    return sorted((point.step, point.value) for point in MlflowClient(database).get_metric_history(run_id, key))


def test_everything_arrives(open_tracker: Callable[[], Tracker], database: str, tmp_path: Path) -> None:
    (tmp_path / "figure.svg").write_bytes(b"<svg/>")
    tracker = open_tracker()
    tracker.log_params({"model": {"width": 64, "layers": [1, 2]}, "note": "x" * 9000, "data": "s3://me:secret@host/x"})
    tracker.set_tags({"git": "abc", "server": "http://me:secret@host"})
    tracker.log_metrics(1, {"loss": 2.5, "rate": math.nan})
    tracker.log_metrics(2, {"loss": 1.5})
    tracker.log_artifact("run.yaml", b"a: 1")
    tracker.log_artifact("figures/figure.svg", tmp_path / "figure.svg")
    assert tracker.close() == 0
    client = MlflowClient(database)
    assert tracker.run_id is not None
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "test_everything_arrives"
    assert run.data.params["model.width"] == "64"
    assert run.data.params["model.layers"] == "[1, 2]"
    assert run.data.params["note"] == "x" * 6000
    assert run.data.params["data"] == "s3://***@host/x"
    assert run.data.tags["git"] == "abc"
    assert run.data.tags["server"] == "http://***@host"
    assert history(database, tracker.run_id, "loss") == [(1, 2.5), (2, 1.5)]
    assert math.isnan(run.data.metrics["rate"])
    assert Path(client.download_artifacts(run.info.run_id, "run.yaml")).read_bytes() == b"a: 1"
    assert Path(client.download_artifacts(run.info.run_id, "figures/figure.svg")).read_bytes() == b"<svg/>"
    # Nothing lies where the process happened to be started.
    assert not Path("mlruns").exists()


def test_a_restart_goes_on_with_the_same_run(open_tracker: Callable[[], Tracker], database: str) -> None:
    first = open_tracker()
    first.log_params({"world_size": 2, "seed": 1})
    for step in (1, 2, 3):
        first.log_metrics(step, {"loss": 1.0 / step})
    assert first.close("SCHEDULED") == 0
    assert first.run_id is not None
    assert MlflowClient(database).get_run(first.run_id).info.status == "SCHEDULED"

    second = open_tracker()
    until(lambda: second.run_id is not None)
    assert second.run_id == first.run_id
    assert MlflowClient(database).get_run(first.run_id).info.status == "RUNNING"
    second.log_params({"world_size": 1, "seed": 1})
    # From the checkpoint of step 2: step 3 is computed again.
    for step in (3, 4):
        second.log_metrics(step, {"loss": 1.0 / step})
    assert second.close("FAILED") == 0
    run = MlflowClient(database).get_run(first.run_id)
    assert run.info.status == "FAILED"
    assert run.data.params["world_size"] == "2"
    assert run.data.tags["resumed.world_size"] == "1"
    assert "resumed.seed" not in run.data.tags
    assert history(database, first.run_id, "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4)]


def test_of_processes_that_start_together_one_creates_the_run(
    open_tracker: Callable[[], Tracker], database: str
) -> None:
    with ThreadPoolExecutor(3) as pool:
        trackers = list(pool.map(lambda _: open_tracker(), range(3)))
    for tracker in trackers:
        tracker.close()
    assert len({tracker.run_id for tracker in trackers}) == 1
    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("unit")
    assert experiment is not None
    name = "test_of_processes_that_start_together_one_creates_the_run"
    alive = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    assert [run.info.run_id for run in alive] == [trackers[0].run_id]


def test_a_run_whose_making_was_answered_late_is_not_thrown_away(
    open_tracker: Callable[[], Tracker], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Store.put

    def put_twice(store: Store, name: str, data: bytes, *, create_only: bool = False) -> object:
        """As a request that is tried again because the answer of the first was lost."""
        put(store, name, data, create_only=create_only)
        return put(store, name, data, create_only=create_only)

    monkeypatch.setattr(Store, "put", put_twice)
    tracker = open_tracker()
    tracker.log_metrics(1, {"loss": 1.0})
    assert tracker.close() == 0
    assert history(database, tracker.run_id, "loss") == [(1, 1.0)]
    assert tracker.run_id is not None
    assert MlflowClient(database).get_run(tracker.run_id).info.lifecycle_stage == "active"


@pytest.mark.slow
def test_of_processes_that_meet_at_a_new_database_none_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from astroclip_dist.store import Store; from astroclip_dist.train.mlflow_run import MlflowRun; "
        "MlflowRun.connect(Store(sys.argv[1]), sys.argv[2], 'met', 'run', 1)"
    )
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    runs = [tmp_path / name for name in ("a", "b", "c")]
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(run), uri], stderr=subprocess.PIPE, text=True) for run in runs
    ]
    for process in started:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("met")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == len(runs)


def test_a_run_that_the_server_does_not_know_is_refused(database: str, tmp_path: Path) -> None:
    Store(tmp_path).put("tracking.json", json.dumps({"run_id": "0" * 32, "began_ms": 1}).encode())
    # Known runs are not waited for: training has begun when the server says so.
    tracker = Tracker.open(Store(tmp_path), database, "unit", "x")
    with pytest.raises(ConfigError, match=r"tracking\.uri.*not found"):
        until(lambda: tracker.log_metrics(1, {"loss": 1.0}))


def test_a_database_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="/proc/nowhere"):
        Tracker.open(Store(tmp_path), "sqlite:////proc/nowhere/mlflow.db", "unit", "x")


def test_something_that_is_no_tracking_uri_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\*\*\*@host") as caught:
        Tracker.open(Store(tmp_path), "bogus://me:secret@host", "unit", "x")
    assert "secret" not in str(caught.value)


def test_system_metrics_go_on_across_a_restart(
    open_tracker: Callable[[], Tracker], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "SYSTEM_INTERVAL_S", 0.5)
    monkeypatch.setattr(tracking, "SEND_INTERVAL_S", 0.2)
    lengths = []
    for _ in range(2):
        tracker = open_tracker()
        tracker._thread.join(2.0)
        assert tracker.close() == 0
        lengths.append(len(history(database, tracker.run_id, "system/system_memory_usage_megabytes")))
    assert 0 < lengths[0] < lengths[1]
    assert tracker.run_id is not None
    assert "system/cpu_utilization_percentage" in MlflowClient(database).get_run(tracker.run_id).data.metrics


def test_a_machine_that_cannot_be_asked_costs_no_record(
    open_tracker: Callable[[], Tracker],
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tracking, "SYSTEM_INTERVAL_S", 0.2)
    monkeypatch.setattr(tracking, "SEND_INTERVAL_S", 0.1)
    counters, refused = psutil.virtual_memory, OSError("/proc/meminfo: Permission denied")
    # Where there are no interfaces psutil has no counters.
    monkeypatch.setattr(psutil, "net_io_counters", lambda: None)
    monkeypatch.setattr(psutil, "virtual_memory", Mock(side_effect=[counters(), *[refused] * 1000]))
    tracker = open_tracker()
    tracker.log_metrics(1, {"loss": 1.0})
    until(lambda: history(database, tracker.run_id, "system/disk_usage_percentage"))
    assert tracker.close() == 0
    assert history(database, tracker.run_id, "loss") == [(1, 1.0)]
    assert caplog.text.count("Permission denied") == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pw@host:5000/x", "http://***@host:5000/x"),
        ("no url, me@home.org", "no url, me@home.org"),
        ("at https://tok@a and http://b/@c", "at https://***@a and http://b/@c"),
    ],
)
def test_mask(text: str, shown: str) -> None:
    assert mask(text) == shown


class Held:
    """Lets a call begin and holds it until it is let go."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self.begun, self.released = threading.Event(), threading.Event()

    def __call__(self, *arguments: Any) -> Any:
        self.begun.set()
        assert self.released.wait(30)
        return self._call(*arguments)


def test_what_is_kept_while_it_is_being_sent_arrives_once(
    open_tracker: Callable[[], Tracker], database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "SEND_INTERVAL_S", 0.1)
    tracker = open_tracker()
    held = Held(MlflowRun.send)
    monkeypatch.setattr(MlflowRun, "send", lambda run, records: held(run, records))
    tracker.log_metrics(1, {"loss": 1.0})
    assert held.begun.wait(10)
    tracker.log_metrics(2, {"loss": 2.0})
    assert tracker.keep()
    (spooled,) = Store(tmp_path / "run").list(SPOOL_FOLDER)
    kept = [json.loads(line) for line in Store(tmp_path / "run").read(spooled.name).splitlines()]
    assert [record["step"] for record in kept if record["key"] == "loss"] == [1, 2]
    tracker.log_metrics(3, {"loss": 3.0})
    held.released.set()
    assert tracker.close() == 0
    assert history(database, tracker.run_id, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert Store(tmp_path / "run").list(SPOOL_FOLDER) == []


def test_records_that_neither_mlflow_nor_the_run_folder_takes_stay_in_memory(
    open_tracker: Callable[[], Tracker], database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = open_tracker()
    with monkeypatch.context() as away:

        def refuse(*arguments: object, **options: object) -> None:
            raise StorageError("file:///run", "is away", "Bring it back.")

        away.setattr(MlflowRun, "send", refuse)
        away.setattr(Store, "put", refuse)
        tracker.log_metrics(1, {"loss": 1.0})
        assert not tracker.keep()
    assert tracker.close() == 0
    assert history(database, tracker.run_id, "loss") == [(1, 1.0)]


def test_batches_stay_in_order_although_the_clock_is_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    for step, clock in enumerate((5_000, 9_000, 1_000, 2_000)):
        monkeypatch.setattr(time, "time_ns", lambda clock=clock: clock)
        # Each by a process of its own.
        Spool(store).append([{"kind": "metric", "key": "loss", "step": step}])
    spool, steps = Spool(store), []
    while (records := spool.oldest()) is not None:
        steps.append(records[0]["step"])
        spool.drop_oldest()
    assert steps == [0, 1, 2, 3]
    assert len(spool) == 0


def test_a_server_that_is_away_can_be_told_later(database: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert send_unsent(store, database, "unit", "later") == (0, None)
    began = now_ms() - 3_600_000
    Spool(store).append([{"kind": "status", "key": "status", "value": "RUNNING", "timestamp": began}])
    Spool(store).append(
        [
            {"kind": "metric", "key": "loss", "value": 1.0, "timestamp": began + 1, "step": 1},
            {"kind": "status", "key": "status", "value": "FINISHED", "timestamp": began + 60_000},
        ]
    )
    with pytest.raises(StorageError, match="2 of 2 batches stay: MLflow is away"):
        send_unsent(store, "http://127.0.0.1:9", "unit", "later")
    with pytest.raises(ConfigError, match="cannot be used"):
        send_unsent(store, "bogus://host", "unit", "later")
    assert send_unsent(store, database, "unit", "later") == (2, None)
    run_id = json.loads(store.read("tracking.json"))["run_id"]
    info = MlflowClient(database).get_run(run_id).info
    assert (info.status, info.start_time, info.end_time) == ("FINISHED", began, began + 60_000)
    assert history(database, run_id, "loss") == [(1, 1.0)]
    assert send_unsent(store, database, "unit", "later") == (0, None)


@pytest.mark.parametrize(
    ("last_words", "status"),
    [
        ([{"event": "saved", "step": 5}], "KILLED"),
        ([{"event": "failed", "error": "no restarts left"}], "FAILED"),
        ([{"event": "preempted", "step": 5}], "SCHEDULED"),
        ([{"event": "preempted", "step": 5}, {"event": "resumed", "step": 5}], "KILLED"),
        ([{"event": "finished", "step": 9}], "FINISHED"),
        ([], "KILLED"),
    ],
)
def test_a_run_whose_process_was_killed_is_ended_by_its_events(
    database: str, tmp_path: Path, last_words: list[dict[str, Any]], status: str
) -> None:
    store = Store(tmp_path)
    heard = now_ms() - 3_600_000
    killed = MlflowRun.connect(store, database, "unit", "killed", heard - 60_000)
    killed.send(
        [
            {"kind": "status", "key": "status", "value": "RUNNING", "timestamp": heard - 60_000},
            {"kind": "metric", "key": "loss", "value": 1.0, "timestamp": heard, "step": 5},
        ]
    )
    with EventLog(store) as events:
        for word in last_words:
            events.write(**word)
    assert send_unsent(store, database, "unit", "killed") == (0, status)
    info = MlflowClient(database).get_run(killed.run_id).info
    assert info.status == status
    # As long as it was heard of, not as long as nobody looked.
    assert info.end_time == (None if status == "SCHEDULED" else heard)
    assert send_unsent(store, database, "unit", "killed") == (0, None)
