"""A pipeline on this machine's queue, with the command that people type: pre-trainings to a report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from launchers.jobs.desk import Job, JobDesk
from launchers.jobs.records import JobRecords
from launchers.jobs.status import JobState
from tests.random_survey import write_random_survey
from tests.system.tiny_pipeline import AFTER, write_pipeline, write_survey
from tests.system.training_runs import event, events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PATIENCE_S = 600.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ASTROCLIP_JOBS", str(tmp_path / "jobs"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_pipeline(tmp_path, {"name": "local"})
    yield tmp_path
    desk = JobDesk(JobRecords())
    for job in desk.jobs():
        desk.cancel(job.record.name)
    deadline = time.monotonic() + 30
    while left := [process for process in psutil.process_iter(["cmdline"]) if _concerns(process, tmp_path)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _concerns(process: psutil.Process, folder: Path) -> bool:
    return process.pid != os.getpid() and any(str(folder) in part for part in process.info["cmdline"] or [])


def submit(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output of ``astroclip jobs submit``."""
    command = [sys.executable, "-m", "astroclip_dist.cli", "jobs", "submit", str(folder / "tiny.yaml"), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE_S)
    return done.returncode, done.stdout


def look() -> dict[str, Job]:
    """The jobs, by their keys in the pipeline."""
    jobs = {job.record.name.removeprefix("tiny-"): job for job in JobDesk(JobRecords()).jobs(["tiny"])}
    return {key: jobs[key] for key in AFTER}


def states_of(jobs: dict[str, Job]) -> dict[str, JobState]:
    return {key: job.status.state for key, job in jobs.items()}


def test_pretrainings_alignment_embeddings_and_report_come_one_after_the_other(folder: Path) -> None:
    write_survey(folder)
    code, output = submit(folder)
    assert code == 0, output
    assert output.count("submitted") == 5
    began: list[str] = []
    deadline = time.monotonic() + PATIENCE_S
    last, jobs, following = {}, look(), look()
    while not all(job.status.state is JobState.SUCCEEDED for job in jobs.values()):
        assert time.monotonic() < deadline, jobs
        states = states_of(jobs)
        assert set(states.values()) <= {JobState.PENDING, JobState.RUNNING, JobState.SUCCEEDED}, jobs
        began += [key for key, state in states.items() if state is JobState.RUNNING and key not in began]
        # One job is looked at after the other: what they say of one another counts where nothing changed meanwhile.
        if states_of(last) == states_of(following):
            assert list(states.values()).count(JobState.RUNNING) <= 1
            for key, before in AFTER.items():
                if missing := [f"tiny-{other}" for other in before if states[other] is not JobState.SUCCEEDED]:
                    assert states[key] is JobState.PENDING
                    assert jobs[key].status.reason == f"waits for {', '.join(missing)}"
        time.sleep(0.3)
        last, jobs, following = jobs, following, look()
    assert began == list(AFTER)
    out = folder / "out"
    for run in ("image", "spectrum", "align"):
        assert events(out / run)[0] == ("started", 0)
        assert events(out / run)[-1] == ("finished", 4)
    assert not event(out / "align", "resumed")
    assert (out / "report.html").read_text().count("<html") == 1
    assert json.loads((out / "results.json").read_text())["lineage"]["objective"] == "clip"
    # The same again changes nothing.
    code, output = submit(folder, "--wait")
    assert code == 0, output
    assert output.count("nothing was submitted") == 5
    assert {job.record.attempt for job in look().values()} == {0}


def test_a_failed_stage_cancels_those_after_it_and_the_same_command_goes_on(folder: Path) -> None:
    write_random_survey(str(folder / "data"), 40)
    (folder / "data").rename(folder / "not-there-yet")
    code, output = submit(folder, "--wait")
    assert code == 1, output
    assert "job tiny-image: failed" in output
    deadline = time.monotonic() + PATIENCE_S
    jobs = look()
    while not all(job.status.state.is_over for job in jobs.values()):
        assert time.monotonic() < deadline, jobs
        time.sleep(0.2)
        jobs = look()
    assert list(states_of(jobs).values()) == [JobState.FAILED] * 2 + [JobState.CANCELLED] * 3
    assert "exit code 1" in str(jobs["image"].status.reason)
    for key in ("align", "embed", "evaluate"):
        assert str(jobs[key].status.reason).startswith("needs tiny-image, which is failed: exit code 1")
    (folder / "not-there-yet").rename(folder / "data")
    code, output = submit(folder)
    assert code == 0, output
    assert output.count("attempt 2") == 5
    while look()["image"].status.state is not JobState.SUCCEEDED:
        assert time.monotonic() < deadline, look()
        time.sleep(0.2)
