"""Training under Ray Train: the local launcher's weights, restarts by Ray, errors that it must not retry."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from astroclip_dist.store import Store
from astroclip_dist.train.mlflow_run import read_history
from launchers.worker import PREEMPTED
from tests.random_survey import write_random_survey
from tests.system.training_runs import STEPS, Command, event, events, result, saves, undisturbed, write_config


@pytest.fixture(scope="module", autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    uri = f"sqlite:///{tmp_path_factory.getbasetemp() / 'training.db'}"
    # Makes the database, which takes longer than a failing run may take to write down why it fails.
    MlflowClient(uri).search_experiments()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield


def ray_processes(command: Command, actor: str) -> list[psutil.Process]:
    """The processes of an actor's class in a command's own Ray, told by the title that Ray gives them."""
    children = psutil.Process(command.process.pid).children(recursive=True)
    return [child for child in children if f"ray::{actor}" in " ".join(child.cmdline())]


def test_ray_restarts_a_killed_worker_and_ends_with_the_local_launchers_weights(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    data, expected = undisturbed(tmp_path_factory.getbasetemp())
    run = tmp_path / "run"
    command = Command(write_config(tmp_path, data, str(run)), "launcher=ray")
    command.wait_for("step 17/30")
    workers = ray_processes(command, "RayTrainWorker")
    assert len(workers) == 2
    workers[0].send_signal(signal.SIGKILL)
    assert command.finish() == 0, command.output
    # The worker that is left may have time to write down why it stops.
    kinds = [entry for entry in events(run) if entry[0] != "failed"]
    again = [("restarting", None), ("resumed", 15), *saves(20, STEPS), ("finished", STEPS)]
    assert kinds == [("started", 0), *saves(5, 15), *again]
    restart = event(run, "restarting")[0]
    assert re.match(r"rank \d: its process died|rank \d stopped: another rank ended without a word", restart["cause"])
    assert restart["world_size"] == 2
    assert result(run) == expected
    # One MLflow run, each step in it once.
    steps = [step for step, _ in read_history(Store(run), "loss")]
    assert steps == sorted(set(steps))
    assert {*range(16, STEPS + 1)} <= {*steps}


@pytest.mark.slow
def test_a_told_driver_saves_and_a_dead_controller_is_replaced(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """SIGTERM to the command: the step that is done is saved, and 75 means to start it again; no step is lost then.
    The controller, which Ray does not restart, is started again by the command."""
    data, expected = undisturbed(tmp_path_factory.getbasetemp())
    run = tmp_path / "run"
    config = write_config(tmp_path, data, str(run))
    command = Command(config, "launcher=ray", "checkpoint.every=20 steps")
    command.wait_for("step 7/30")
    command.process.send_signal(signal.SIGTERM)
    assert command.finish() == PREEMPTED, command.output
    left = event(run, "preempted")[0]
    assert left["reason"] == "SIGTERM"
    assert 7 <= left["step"] < 20

    command = Command(config, "launcher=ray", "checkpoint.every=20 steps")
    command.wait_for(f"resumed at step {left['step']} of 30")
    command.wait_for("step 21/30")
    (controller,) = ray_processes(command, "TrainController")
    controller.send_signal(signal.SIGKILL)
    assert command.finish() == 0, command.output
    assert [entry["cause"] for entry in event(run, "restarting")] == ["the controller of the workers died"]
    assert [entry["step"] for entry in event(run, "resumed")] == [left["step"], 20]
    assert result(run) == expected


@pytest.mark.slow
def test_workers_that_cannot_connect_are_started_again_until_the_budget_is_spent(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    data, _ = undisturbed(tmp_path_factory.getbasetemp())
    run = tmp_path / "run"
    config = write_config(tmp_path, data, str(run))
    absent = {"GLOO_SOCKET_IFNAME": "absent0"}
    command = Command(config, "launcher=ray", "health.max_restarts=1", environment=absent)
    command.wait_for("restarting: ")
    assert command.finish() == 1, command.output
    (restart,) = event(run, "restarting")
    assert "the workers could not be started" in restart["cause"]
    assert "absent0" in restart["cause"]
    assert "no restarts left" in event(run, "failed")[0]["error"]


@pytest.mark.slow
def test_ray_does_not_restart_what_only_the_user_can_mend(tmp_path: Path) -> None:
    write_random_survey(str(tmp_path / "data"), 48, samples_per_shard=48)
    shard = tmp_path / "data" / "train-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) * 9 // 10])
    run = tmp_path / "run"
    command = Command(write_config(tmp_path, str(tmp_path / "data"), str(run)), "launcher=ray", "length=9 steps")
    assert command.finish() == 1
    reason = r"health\.quarantine_budget: .*rank \d, .*train-000000\.tar: sample random-\d+: \w+: \d+ bytes instead of"
    assert re.match(f"error: {reason}", command.lines[-1]), command.output
    assert re.search(reason, event(run, "failed")[0]["error"])
    assert [kind for kind, _ in events(run)].count("resumed") == 0
    assert [kind for kind, _ in events(run)].count("started") == 1


@pytest.mark.slow
def test_a_ray_whose_parts_have_moved_is_named() -> None:
    moved = "ray.train.v2._internal.execution.scaling_policy.elastic"
    run = "from launchers.ray.workers import RayWorkers; RayWorkers().run(None)"
    command = [sys.executable, "-c", f"import sys; sys.modules[{moved!r}] = None; {run}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert re.search(r"ConfigError: launcher: Ray \d.*scaling_policy\.elastic.* Install Ray 2\.60", ended.stderr)
