"""The tracker against a real MLflow server that is killed, frozen or away."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from astroclip_dist.store import Store
from astroclip_dist.train import tracking
from astroclip_dist.train.tracking import START_DEADLINE_S, Tracker
from tests.system.conftest import RealMlflowServer, RealObjectStore

LONGEST_CALL_S = 0.05


def rows(uri: str, run_id: str | None, key: str) -> list[tuple[int, float]]:
    """All rows of a metric, doubled ones included."""
    assert run_id is not None
    return sorted((point.step, point.value) for point in MlflowClient(uri).get_metric_history(run_id, key))


def log_and_time(tracker: Tracker, steps: range, pause_s: float = 0.0) -> float:
    """Log two metrics a step; returns the longest call in seconds."""
    longest = 0.0
    for step in steps:
        began = time.perf_counter()
        tracker.log_metrics(step, {"loss": 1.0 / (step + 1), "rate": float(step)})
        longest = max(longest, time.perf_counter() - began)
        time.sleep(pause_s)
    return longest


def expected(steps: range) -> list[tuple[int, float]]:
    return [(step, 1.0 / (step + 1)) for step in steps]


def test_everything_arrives(mlflow_server: RealMlflowServer, tmp_path: Path) -> None:
    tracker = Tracker.open(Store(tmp_path), mlflow_server.uri, "system", "arrives")
    tracker.log_params({"model": {"width": 64}} | {f"p{number}": number for number in range(250)})
    longest = log_and_time(tracker, range(2500))
    tracker.log_artifact("figures/a.svg", b"<svg/>")
    time.sleep(2)
    assert tracker.close("FINISHED") == 0
    assert longest < LONGEST_CALL_S
    assert tracker.run_id is not None
    client = MlflowClient(mlflow_server.uri)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert len(run.data.params) == 251
    assert rows(mlflow_server.uri, tracker.run_id, "loss") == expected(range(2500))
    assert run.data.metrics["system/system_memory_usage_percentage"] > 0
    assert Path(client.download_artifacts(run.info.run_id, "figures/a.svg")).read_bytes() == b"<svg/>"


TRAINER = """
import sys, time
from astroclip_dist.store import Store
from astroclip_dist.train.tracking import Tracker
url, uri, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
tracker = Tracker.open(Store(url), uri, "system", "restart")
for step in range(first, last):
    tracker.log_metrics(step, {"loss": 1.0 / (step + 1)})
    time.sleep(0.01)
print("logged", flush=True)
if sys.argv[5] == "killed":
    time.sleep(60)
sys.exit(tracker.close())
"""


def test_one_run_across_a_killed_trainer(
    mlflow_server: RealMlflowServer, object_store: RealObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    url = object_store.create_bucket("tracked-runs") + "/restart"
    command = [sys.executable, "-c", TRAINER, url, mlflow_server.uri]
    first = subprocess.Popen([*command, "0", "300", "killed"], stdout=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stdout.readline() == b"logged\n"
    time.sleep(2)
    first.kill()
    first.wait()
    # The second one goes on from a checkpoint at step 200.
    assert subprocess.run([*command, "200", "400", "ends"], stdout=subprocess.DEVNULL).returncode == 0
    client = MlflowClient(mlflow_server.uri)
    experiment = client.get_experiment_by_name("system")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'restart'")
    assert run.info.status == "FINISHED"
    assert rows(mlflow_server.uri, run.info.run_id, "loss") == expected(range(400))


def test_a_server_killed_in_mid_run_costs_nothing(mlflow_server: RealMlflowServer, tmp_path: Path) -> None:
    store = Store(tmp_path)
    tracker = Tracker.open(store, mlflow_server.uri, "system", "server killed")
    longest = log_and_time(tracker, range(200), 0.01)
    mlflow_server.kill()
    longest = max(longest, log_and_time(tracker, range(200, 600), 0.01))
    assert store.list("tracking"), "nothing was spooled while the server was away"
    mlflow_server.restart()
    longest = max(longest, log_and_time(tracker, range(600, 800), 0.01))
    assert tracker.close(deadline_s=60) == 0
    assert longest < LONGEST_CALL_S
    assert rows(mlflow_server.uri, tracker.run_id, "loss") == expected(range(800))
    assert rows(mlflow_server.uri, tracker.run_id, "rate") == [(step, float(step)) for step in range(800)]
    assert store.list("tracking") == []


def test_a_server_away_for_a_whole_run_gets_it_from_the_next_process(
    mlflow_server: RealMlflowServer, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    mlflow_server.kill()
    try:
        began = time.monotonic()
        tracker = Tracker.open(store, mlflow_server.uri, "system", "away")
        assert time.monotonic() - began < START_DEADLINE_S
        assert tracker.run_id is None
        tracker.log_params({"seed": 3})
        tracker.log_artifact("run.yaml", b"seed: 3")
        assert log_and_time(tracker, range(50), 0.01) < LONGEST_CALL_S
        began = time.monotonic()
        assert tracker.close(deadline_s=3) > 0
        assert time.monotonic() - began < 5
        assert not store.exists("tracking.json")
        tracker._thread.join(20)  # as if its process had ended
    finally:
        mlflow_server.restart()
    later = Tracker.open(store, mlflow_server.uri, "system", "away")
    later.log_metrics(50, {"loss": 1.0 / 51})
    assert later.close() == 0
    assert rows(mlflow_server.uri, later.run_id, "loss") == expected(range(51))
    assert later.run_id is not None
    client = MlflowClient(mlflow_server.uri)
    assert client.get_run(later.run_id).data.params == {"seed": "3"}
    assert Path(client.download_artifacts(later.run_id, "run.yaml")).read_bytes() == b"seed: 3"


def test_a_frozen_server_blocks_neither_the_start_nor_the_loop(
    mlflow_server: RealMlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "START_DEADLINE_S", 3.0)
    server = psutil.Process(mlflow_server.pid)
    frozen = [server, *server.children(recursive=True)]
    for process in frozen:
        process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        tracker = Tracker.open(Store(tmp_path), mlflow_server.uri, "system", "frozen")
        assert time.monotonic() - began < 4
        assert log_and_time(tracker, range(100), 0.01) < LONGEST_CALL_S
    finally:
        for process in frozen:
            process.send_signal(signal.SIGCONT)
    assert tracker.close(deadline_s=60) == 0
    assert rows(mlflow_server.uri, tracker.run_id, "loss") == expected(range(100))
