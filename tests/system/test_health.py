"""Ranks that hang or fail, in real processes: who it was is found, said once, and the run goes on."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from astroclip_dist.store import Store
from astroclip_dist.train.mlflow_run import read_history
from tests.random_survey import write_random_survey
from tests.system.disturbed_training import (
    Deed,
    Disturbance,
    Training,
    before_a_collective,
    fail,
    hang,
    in_backward,
    in_data,
    in_save,
    magnify,
    pause,
    stop,
)
from tests.system.training_runs import CONFIG, Command, event, events, result, write_config

TINY = CONFIG.replace("width: 128, depth: 3", "width: 32, depth: 1").replace("length: 30 steps", "length: 12 steps")
# Long beside a step of such a model, even where other tests use the same cores.
DEADLINE_S = 6.0


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dataset; and one MLflow database for all, since creating one takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.getbasetemp() / 'training.db'}"
    MlflowClient(uri).search_experiments()
    data = tmp_path_factory.mktemp("survey")
    write_random_survey(str(data), 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield str(data)


def disturbed(data: str, folder: Path, where: Disturbance, do: Deed, *, rank: int, of: int) -> Training:
    overrides = [f"workers={of}", f"health.hang_deadline={DEADLINE_S:.0f} s", "checkpoint.every=2 steps"]
    return Training(config_in(folder, data), overrides, rank=rank, where=where, do=do)


def config_in(folder: Path, data: str) -> Path:
    folder.mkdir()
    return write_config(folder, data, str(folder / "run"), TINY)


def test_a_rank_that_hangs_is_found_and_named(survey: str, tmp_path: Path) -> None:
    # At the same time: they mostly wait.
    data = disturbed(survey, tmp_path / "data", in_data, hang, rank=1, of=2)
    backward = disturbed(survey, tmp_path / "backward", in_backward, hang, rank=0, of=2)
    check_named(data, tmp_path / "data", 1, "data")
    check_named(backward, tmp_path / "backward", 0, "backward")


@pytest.mark.slow
def test_a_rank_that_hangs_elsewhere_is_found_and_named(survey: str, tmp_path: Path) -> None:
    collective = disturbed(survey, tmp_path / "collective", before_a_collective, hang, rank=2, of=4)
    save = disturbed(survey, tmp_path / "save", in_save, hang, rank=1, of=2)
    # The first rank keeps the store through which the ranks ask each other.
    stopped = disturbed(survey, tmp_path / "stopped", in_data, stop, rank=0, of=2)
    check_named(collective, tmp_path / "collective", 2, "agree")
    check_named(save, tmp_path / "save", 1, "save")

    assert stopped.finish(but=0)[1] == 70, stopped.output
    (hung,) = event(tmp_path / "stopped" / "run", "hung")
    assert hung["ranks"] == [0]
    assert re.match(r"rank 0 does not answer \(stopped, .*\); rank 1 is in \w+ since \d+ s at step \d", hung["message"])
    assert named_after(stopped, tmp_path / "stopped" / "run") < 2 * DEADLINE_S


def check_named(training: Training, folder: Path, rank: int, phase: str) -> None:
    """That all ranks leave, because of one rank, which is named once, in time."""
    codes, run = training.finish(), folder / "run"
    assert codes == [70] * len(codes), training.output
    (hung,) = event(run, "hung")
    assert hung["ranks"] == [rank], training.output
    pattern = rf"rank {rank} hangs in {phase} since (\d+) s at step (\d) \(the others wait for it\)"
    found = re.fullmatch(pattern, hung["message"])
    assert found, hung["message"]
    assert training.output.count(" hangs in ") == 1, training.output
    # Counted from where the phase began, which is a little before the rank hangs in it.
    assert int(found[1]) >= DEADLINE_S
    assert named_after(training, run) < 2 * DEADLINE_S
    for number in range(len(codes)):
        text = (run / "stacks" / f"rank-{number:05d}-step-{int(found[2]):09d}.txt").read_text()
        assert ("in hang\n" in text) == (number == rank), text
    # Who hangs shows its stacks in the log, too.
    assert training.output.count("stacks of all threads of rank") == 1


def named_after(training: Training, run: Path) -> float:
    """Seconds from the hang to the event."""
    return datetime.fromisoformat(event(run, "hung")[0]["time"]).timestamp() - training.hangs_from


def test_an_error_of_one_rank_is_shown_once_with_its_traceback(survey: str, tmp_path: Path) -> None:
    training = disturbed(survey, tmp_path / "fails", before_a_collective, fail, rank=3, of=4)
    assert training.finish() == [70] * 4, training.output
    lines = training.output.splitlines()
    assert len([line for line in lines if line.startswith("RuntimeError: mat1 and mat2")]) == 1, training.output
    assert training.output.count("Traceback (most recent call last)") == 1
    assert any(re.search(r"rank 3: Traceback", line) for line in lines)
    others = [line for line in lines if " failed: " in line]
    assert [re.sub(r"^[\d:]+ ", "", line) for line in others] == [
        "rank 0  rank 3 failed: mat1 and mat2 shapes cannot be multiplied (16x128 and 64x32)"
    ]
    (failed,) = event(tmp_path / "fails" / "run", "failed")
    assert failed["error"] == others[0].split("  ")[1]


@pytest.mark.slow
def test_a_rank_that_is_asked_to_leave_takes_all_along_and_no_step_is_lost(survey: str, tmp_path: Path) -> None:
    reference = Training(config_in(tmp_path / "reference", survey), [])
    config, run = config_in(tmp_path / "asked", survey), tmp_path / "asked" / "run"
    every = ["checkpoint.every=2 steps"]

    # While the first batch loads.
    training = Training(config, every, rank=0, where=partial(in_data, call=1), do=pause)
    training.signal(1, signal.SIGTERM, at="pauses")
    assert training.finish() == [75, 75], training.output
    assert events(run) == [("started", 0), ("saved", 1), ("preempted", 1)]
    assert event(run, "preempted")[0]["reason"] == "SIGTERM"
    assert status(run) == "SCHEDULED"

    # While a save is under way: of step 2, or of the next one, which waits for it.
    training = Training(config, every, rank=1, where=in_save, do=pause)
    training.signal(0, signal.SIGUSR1, at="pauses")
    assert training.finish() == [75, 75], training.output
    last = events(run)[-1][1]
    assert last in (3, 4, 5)
    between = [("saved", step) for step in (2, 4) if step < last]
    assert events(run)[3:] == [("resumed", 1), *between, ("saved", last), ("preempted", last)]
    assert event(run, "preempted")[1]["reason"] == "SIGUSR1"

    # In the last step: there is nothing to go on with.
    training = Training(config, every, rank=0, where=partial(in_data, call=12 - last), do=pause)
    training.signal(1, signal.SIGUSR2, at="pauses")
    assert training.finish() == [0, 0], training.output
    assert events(run)[-1] == ("finished", 12)
    assert len(event(run, "preempted")) == 2
    assert status(run) == "FINISHED"

    assert reference.finish() == [0, 0], reference.output
    assert result(run) == result(tmp_path / "reference" / "run")
    assert [step for step, _ in read_history(Store(str(run)), "loss")] == list(range(1, 13))


def status(run: Path) -> str:
    """Of the MLflow run."""
    return MlflowClient().get_run(json.loads((run / "tracking.json").read_text())["run_id"]).info.status


@pytest.mark.slow
def test_a_loss_spike_is_skipped_by_all_ranks_and_alike_after_a_restart(survey: str, tmp_path: Path) -> None:
    length = ["length=60 steps", "checkpoint.every=100 steps", "health.loss_spike=8", "tracking.log_every=20"]
    runs = []
    for name in ("at_once", "restarted"):
        config = config_in(tmp_path / name, survey)
        first = 0
        if name == "restarted":
            training = Training(config, length, rank=1, where=partial(in_data, call=30), do=pause)
            training.signal(0, signal.SIGTERM, at="pauses")
            assert training.finish() == [75, 75], training.output
            first = event(tmp_path / name / "run", "preempted")[0]["step"]
            assert first == 30
        spike = partial(before_a_collective, call=55 - first)
        training = Training(config, length, rank=1, where=spike, do=magnify)
        assert training.finish() == [0, 0], training.output
        runs.append(tmp_path / name / "run")
    skipped = [one for run in runs for one in event(run, "skipped")]
    assert len(skipped) == 2
    for one in skipped:
        assert (one["step"], one["kind"], one["keys"]) == (55, "spike", [])
        low, high = map(float, one["rank_losses"])
        assert high > 20 * low
        assert float(one["loss"]) == pytest.approx((low + high) / 2, rel=1e-4)
    assert {**skipped[0], "time": ""} == {**skipped[1], "time": ""}
    assert result(runs[0]) == result(runs[1])


@pytest.mark.slow
def test_collectives_time_out_sooner_after_the_first_step(survey: str, tmp_path: Path) -> None:
    overrides = ["health.startup_timeout=300 s", "health.collective_timeout=3 s"]
    config = config_in(tmp_path / "late", survey)
    training = Training(config, overrides, rank=1, where=before_a_collective, do=hang)
    assert training.finish(but=1)[0] == 70, training.output
    assert "another rank did not come to a collective in time" in training.output
    assert "Traceback" not in training.output
    (failed,) = event(tmp_path / "late" / "run", "failed")
    assert 3.0 <= datetime.fromisoformat(failed["time"]).timestamp() - training.hangs_from < 20.0


@pytest.mark.slow
def test_a_stopped_worker_is_named_and_the_run_goes_on(survey: str, tmp_path: Path) -> None:
    reference = Training(config_in(tmp_path / "reference", survey), ["checkpoint.every=5 steps"])
    assert reference.finish() == [0, 0], reference.output
    config = config_in(tmp_path / "stopped", survey)
    command = Command(config, "health.hang_deadline=8 s", "checkpoint.every=5 steps", "checkpoint.background=false")
    command.wait_for(r"step [67]/12")
    worker = command.workers()[1]
    worker.suspend()
    command.wait_for(r"rank 1 does not answer \(stopped, or the node is gone\); rank 0 is in \w+ since")
    assert not psutil.wait_procs([worker], timeout=40)[1], "stopped, and left behind"
    assert command.finish() == 0, command.output
    run = tmp_path / "stopped" / "run"
    assert [entry["ranks"] for entry in event(run, "hung")] == [[1]]
    assert ("resumed", 5) in events(run) or ("resumed", 10) in events(run)
    assert result(run) == result(tmp_path / "reference" / "run")
