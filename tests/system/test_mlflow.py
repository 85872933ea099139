"""The tracker against a real MLflow server that is killed, frozen or away."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from datetime import datetime
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from astroclip_dist.cli import main
from astroclip_dist.store import Store
from astroclip_dist.train import tracking
from astroclip_dist.train.run_folder import is_finished
from astroclip_dist.train.tracking import START_DEADLINE_S, Tracker
from tests.random_survey import write_random_survey
from tests.system.conftest import RealMlflowServer, RealObjectStore
from tests.system.training_runs import CONFIG, STEPS, Command, event, run_command, write_config
from tests.until import until

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


def train_with_saves(url: str, uri: str, last: int) -> None:
    """Steps of 10 ms, from the newest save on, with a save every 20 steps that counts once the records are kept."""
    store = Store(url)
    tracker = Tracker.open(store, uri, "system", "kills")
    step = json.loads(store.read("latest")) if store.exists("latest") else 0
    while step < last:
        step += 1
        tracker.log_metrics(step, {"loss": 1.0 / (step + 1), "rate": float(step)})
        time.sleep(0.01)
        if step % 20 == 0:
            assert tracker.keep()
            store.put("latest", json.dumps(step).encode())
    # Not by return: the interpreter's end would wait for threads.
    os._exit(tracker.close())


def test_random_kills_lose_no_step_and_double_none(mlflow_server: RealMlflowServer, tmp_path: Path) -> None:
    # A process that is forked from one with all imports starts in no time.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    draw, last, saved = random.Random(5), 300, 0

    def start() -> BaseProcess:
        process = processes.Process(target=train_with_saves, args=(str(tmp_path), mlflow_server.uri, last))
        process.start()
        return process

    for _ in range(4):
        trainer, before = start(), saved
        while saved == before and trainer.is_alive():
            time.sleep(0.005)
            saved = json.loads((tmp_path / "latest").read_text()) if (tmp_path / "latest").exists() else 0
        time.sleep(draw.uniform(0.0, 0.4))
        trainer.kill()
        trainer.join()
        assert trainer.exitcode == -signal.SIGKILL
    assert saved < last
    trainer = start()
    trainer.join(120)
    assert trainer.exitcode == 0
    run_id = json.loads((tmp_path / "tracking.json").read_text())["run_id"]
    steps = range(1, last + 1)
    assert rows(mlflow_server.uri, run_id, "loss") == expected(steps)
    assert rows(mlflow_server.uri, run_id, "rate") == [(step, float(step)) for step in steps]
    assert MlflowClient(mlflow_server.uri).get_run(run_id).info.status == "FINISHED"
    assert not list((tmp_path / "tracking").glob("*"))


def metrics_of_steps(uri: str, run_id: str) -> dict[str, list[int]]:
    """The steps at which each metric of the training was logged."""
    names = MlflowClient(uri).get_run(run_id).data.metrics
    return {name: [step for step, _ in rows(uri, run_id, name)] for name in names if not name.startswith("system/")}


@pytest.mark.slow
def test_a_training_without_mlflow_ends_well_and_its_records_are_sent_later(
    mlflow_server: RealMlflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_random_survey(str(tmp_path / "data"), 48)
    text = CONFIG.replace("width: 128, depth: 3", "width: 32, depth: 1").replace("30 steps", "9 steps")
    run = tmp_path / "run"
    config = write_config(tmp_path, str(tmp_path / "data"), str(run), text)
    mlflow_server.kill()
    try:
        code, output = run_command(config, "workers=1", f"tracking.uri={mlflow_server.uri}")
        assert code == 0, output
        assert f"astroclip runs sync {run.as_uri()}" in output
        assert list((run / "tracking").glob("*.jsonl"))
        assert not is_finished(Store(run))
        assert main(["runs", "sync", str(run)]) == 1
        assert "MLflow is away" in capsys.readouterr().err
        assert main(["runs", "list", str(run)]) == 0
        assert " unsent " in capsys.readouterr().out
    finally:
        mlflow_server.restart()
    assert main(["runs", "sync", str(run)]) == 0
    assert "MLflow has all" in capsys.readouterr().out
    assert is_finished(Store(run))
    run_id = json.loads((run / "tracking.json").read_text())["run_id"]
    found = metrics_of_steps(mlflow_server.uri, run_id)
    assert {"loss", "lr", "samples_per_second"} <= found.keys()
    assert all(steps == list(range(1, 10)) for steps in found.values()), found
    info = MlflowClient(mlflow_server.uri).get_run(run_id).info
    assert info.status == "FINISHED"
    # When the run was, not when MLflow heard of it.
    (finished,) = event(run, "finished")
    assert abs(info.end_time / 1000 - datetime.fromisoformat(finished["time"]).timestamp()) < 10
    assert info.start_time < info.end_time
    assert main(["runs", "sync", str(run)]) == 0
    assert "nothing to send" in capsys.readouterr().out


@pytest.mark.slow
def test_a_training_whose_first_rank_is_killed_has_every_step_once(
    mlflow_server: RealMlflowServer, tmp_path: Path
) -> None:
    write_random_survey(str(tmp_path / "data"), 100)
    run = tmp_path / "run"
    config = write_config(tmp_path, str(tmp_path / "data"), str(run))
    command = Command(config, f"tracking.uri={mlflow_server.uri}", "health.max_restarts=9")
    # Just after a save of step 5, 15 and 25: their records were in memory a moment ago.
    for step in (6, 16, 26):
        command.kill_worker(0, at=f"step {step}/30")
    assert command.finish() == 0, command.output
    assert len(event(run, "restarting")) == 3
    run_id = json.loads((run / "tracking.json").read_text())["run_id"]
    found = metrics_of_steps(mlflow_server.uri, run_id)
    assert all(steps == list(range(1, STEPS + 1)) for steps in found.values()), found


@pytest.mark.slow
def test_mlflow_does_not_have_a_killed_run_as_running_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_random_survey(str(tmp_path / "data"), 48)
    run, uri = tmp_path / "run", f"sqlite:///{tmp_path}/mlflow.db"
    text = CONFIG.replace("width: 128, depth: 3", "width: 32, depth: 1").replace("30 steps", "3000 steps")
    config = write_config(tmp_path, str(tmp_path / "data"), str(run), text)

    def status() -> str | None:
        if not (run / "tracking.json").exists():
            return None
        run_id = json.loads((run / "tracking.json").read_text())["run_id"]
        return MlflowClient(uri).get_run(run_id).info.status

    # The launcher with its workers, as when their node goes down.
    command = Command(config, f"tracking.uri={uri}")
    command.wait_for("step 2/")
    until(lambda: status() == "RUNNING")
    assert main(["runs", "sync", str(run)]) == 1
    command.process.kill()
    command.finish()
    assert status() == "RUNNING"
    capsys.readouterr()
    assert main(["runs", "sync", str(run)]) == 0
    assert "MLflow had it as RUNNING: KILLED now" in capsys.readouterr().out
    assert status() == "KILLED"
    # The first rank alone, by a launcher that gives up: that one says it.
    again = Command(config, f"tracking.uri={uri}", "health.max_restarts=0")
    again.wait_for(r"step \d+/")
    until(lambda: status() == "RUNNING")
    again.kill_worker(0, at=r"step \d+/")
    assert again.finish() == 1, again.output
    assert status() == "FAILED"
