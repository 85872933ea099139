"""A run on this machine that is asked to leave, in every way in which that happens."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import describe
from astroclip_dist.train.mlflow_run import read_history
from tests.system.disturbed_training import Training, in_save
from tests.system.training_runs import STEPS, Command, event, events, result, run_command, undisturbed, write_config

pytestmark = pytest.mark.slow
SLOW_S = 5.0


def write_slowly(*_: object, **__: object) -> None:
    print("writes slowly", flush=True)
    time.sleep(SLOW_S)


@pytest.fixture(scope="module", autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One MLflow database for all: creating one takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.getbasetemp() / 'training.db'}")
        yield


def test_a_run_that_leaves_again_and_again_ends_as_if_nobody_had_asked(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    data, expected = undisturbed(tmp_path_factory.getbasetemp())
    run = tmp_path / "run"
    config = write_config(tmp_path, data, str(run))

    command = Command(config)
    command.wait_for("step 3/30")
    command.process.send_signal(signal.SIGTERM)
    assert command.finish() == 75, command.output

    command = Command(config)
    command.wait_for("step 11/30")
    command.process.send_signal(signal.SIGINT)
    assert command.finish() == 130, command.output

    # As queues do that signal every process of a job.
    command = Command(config)
    command.wait_for("step 18/30")
    for pid in (*(worker.pid for worker in command.workers().values()), command.process.pid):
        os.kill(pid, signal.SIGUSR2)
    assert command.finish() == 75, command.output

    # One worker alone is told; the launcher hears of it by its exit code.
    command = Command(config)
    command.wait_for("step 23/30")
    command.workers()[1].send_signal(signal.SIGTERM)
    assert command.finish() == 75, command.output
    assert "the same command goes on with the run" in command.output

    code, output = run_command(config)
    assert code == 0, output
    assert [entry["reason"] for entry in event(run, "preempted")] == ["SIGTERM", "SIGINT", "SIGUSR2", "SIGTERM"]
    stops = [entry["step"] for entry in event(run, "preempted")]
    assert [entry["step"] for entry in event(run, "resumed")] == stops
    assert not event(run, "restarting")
    assert result(run) == expected
    assert [step for step, _ in read_history(Store(run), "loss")] == list(range(1, STEPS + 1))


def test_asked_before_its_workers_are_ready_a_new_run_leaves_and_can_be_started_again(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    data, _ = undisturbed(tmp_path_factory.getbasetemp())
    run = tmp_path / "run"
    command = Command(write_config(tmp_path, data, str(run)))
    deadline = time.monotonic() + 60
    while not command.workers() and time.monotonic() < deadline:
        time.sleep(0.05)
    command.process.send_signal(signal.SIGTERM)
    assert command.finish() == 75, command.output
    assert "Traceback" not in command.output
    assert not event(run, "restarting")
    assert (run / "run.yaml").exists()


def test_workers_that_do_not_leave_in_time_are_ended(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    data, _ = undisturbed(tmp_path_factory.getbasetemp())
    run = tmp_path / "run"
    targets = tmp_path / "targets"
    watched = ("metrics.port=0", f"metrics.targets_folder={targets}")
    command = Command(write_config(tmp_path, data, str(run)), "health.preemption_deadline=1 s", *watched)
    command.wait_for("step 7/30")
    assert list(targets.iterdir())
    command.workers()[1].suspend()
    command.process.send_signal(signal.SIGTERM)
    assert command.finish() == 75, command.output
    assert "left without a save" in command.output
    assert events(run)[-1] == ("saved", 5)
    # It waits in a queue now: nobody is to be woken up because it does not answer.
    assert not list(targets.iterdir())


def test_the_save_under_way_and_the_last_one_have_the_deadline_together(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    data, _ = undisturbed(tmp_path_factory.getbasetemp())
    run = tmp_path / "run"
    overrides = ["checkpoint.background=true", f"health.preemption_deadline={SLOW_S + 1:.0f} s"]
    training = Training(write_config(tmp_path, data, str(run)), overrides, where=in_save, do=write_slowly)
    # The save of step 5 is begun, and takes most of the deadline. The next one then takes all the rest.
    training.signal(1, signal.SIGTERM, at="writes slowly")
    assert training.finish() == [75, 75], training.output
    assert "health.preemption_deadline is over, it is given up" in training.output
    (left,) = event(run, "preempted")
    assert (left["saved"], left["step"] > 5) == (5, True)
    assert [found.step for found in describe(Store(run)) if found.is_complete] == [5]


def test_the_workers_that_are_left_after_a_kill_do_not_hold_up_the_restart(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    data, expected = undisturbed(tmp_path_factory.getbasetemp())
    run = tmp_path / "run"
    command = Command(write_config(tmp_path, data, str(run)))
    command.wait_for("step 7/30")
    workers = command.workers()
    # It neither notices that the other is gone nor hears a signal that can be handled.
    workers[0].suspend()
    workers[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    command.wait_for("a worker died")
    assert time.monotonic() - began < 7
    assert command.finish() == 0, command.output
    (restarting,) = event(run, "restarting")
    assert restarting["cause"] == "rank 1 was killed by SIGKILL"
    assert (restarting["attempt"], restarting["of"]) == (1, 3)
    assert re.search(r"rank 1 was killed by SIGKILL\); 3 restarts left", command.output)
    assert result(run) == expected
