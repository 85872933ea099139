"""The queue of this machine with real processes: turns, priorities, restarts, requests, deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from astroclip_dist.config.strict import validated
from astroclip_dist.errors import ConfigError
from launchers.jobs.desk import JobDesk
from launchers.jobs.places import LocalPlace
from launchers.jobs.records import JobRecords
from launchers.jobs.spec import JobSpec
from launchers.jobs.status import JobState, JobStatus
from launchers.jobs.task import tasks_of
from launchers.local.job_folder import JobFolder
from launchers.local.queue import LocalQueue
from tests.system.training_runs import event, result, undisturbed, write_config

PATIENCE_S = 90.0
CONFIG = "{data: /d, run: /r, length: 1 steps, batch: {global_size: 8}, optimizer: {lr: 1e-3}}"


class Jobs:
    """The jobs of one test, each a command that waits in a named pipe until it is told how to end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.desk = JobDesk(JobRecords())

    def submit(self, name: str, *, after: tuple[str, ...] = (), **values: Any) -> None:
        pipe = self.folder / f"{name}.yaml"
        if "config" not in values and not pipe.exists():
            os.mkfifo(pipe)
        what = {} if "config" in values else {"command": ["config", "show", str(pipe)]}
        job = validated(JobSpec, {"name": name, "launcher": {"name": "local"}, **what, **values})
        self.desk.submit(tasks_of(job), after)

    def end(self, name: str, text: str = CONFIG) -> None:
        """Let a command read this, which ends it: with 0 if it is a configuration, else with 2."""
        (self.folder / f"{name}.yaml").write_text(text)

    def status(self, name: str) -> JobStatus:
        return self.desk.jobs([name])[0].status

    def states(self, *names: str) -> list[JobState]:
        return [self.status(name).state for name in names]

    def wait_for(self, name: str, state: JobState, restarts: int = 0) -> JobStatus:
        """Until a job is in that state after so many restarts."""

        def is_so(now: JobStatus) -> bool:
            there = (now.state, now.restarts) == (state, restarts)
            assert there or not now.state.is_over, now
            return there

        return until(lambda: self.status(name), is_so)

    def folder_of(self, name: str) -> JobFolder:
        [job] = self.desk.jobs([name])
        assert job.record.job_id is not None
        return JobFolder(JobRecords().folder / "local" / job.record.job_id)

    def command(self, name: str) -> psutil.Process:
        """The process of a job that runs."""
        state = until(lambda: self.folder_of(name).settled_state()[0], lambda now: now is not None and now.pid)
        return psutil.Process(state.pid)

    def supervisor(self, name: str) -> psutil.Process:
        state, _ = self.folder_of(name).settled_state()
        assert state is not None
        return psutil.Process(state.supervisor)

    def log(self, name: str) -> str:
        return self.folder_of(name).log.read_text()


def until(look: Callable[[], Any], right: Callable[[Any], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not right(seen := look()):
        assert time.monotonic() < deadline, seen
        time.sleep(0.1)
    return seen


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    monkeypatch.setenv("ASTROCLIP_JOBS", str(tmp_path / "jobs"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "")
    jobs = Jobs(tmp_path)
    yield jobs
    for job in jobs.desk.jobs():
        jobs.desk.cancel(job.record.name)
    until(lambda: mentioning(tmp_path), lambda left: not left)


def mentioning(folder: Path) -> list[list[str]]:
    """Command lines of the processes that have something to do with a folder."""
    lines = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if process.pid != os.getpid() and any(str(folder) in part for part in line):
            lines.append(line)
    return lines


@pytest.mark.slow
def test_one_at_a_time_by_priority_then_in_order(jobs: Jobs) -> None:
    jobs.submit("first")
    jobs.wait_for("first", JobState.RUNNING)
    for name, priority in (("low", "low"), ("second", None)):
        jobs.submit(name, priority=priority)
    assert jobs.states("low", "second") == [JobState.PENDING] * 2
    assert jobs.status("second").reason == "waits for its turn"
    for name in ("first", "second", "low"):
        jobs.wait_for(name, JobState.RUNNING)
        assert jobs.states("first", "second", "low").count(JobState.RUNNING) == 1
        jobs.end(name)
        ended = jobs.wait_for(name, JobState.SUCCEEDED)
        assert ended.started is not None
        assert ended.ended is not None
    assert "global_size: 8" in jobs.log("low")


def test_a_higher_priority_preempts_and_what_it_preempted_keeps_its_place(jobs: Jobs) -> None:
    jobs.submit("low", priority="low")
    jobs.wait_for("low", JobState.RUNNING)
    jobs.submit("other", priority="low")
    jobs.submit("urgent", priority="high")
    jobs.wait_for("urgent", JobState.RUNNING)
    low = jobs.status("low")
    assert low.state is JobState.REQUEUED
    assert low.reason == "preempted by urgent; waits for its turn"
    jobs.end("urgent")
    jobs.wait_for("low", JobState.RUNNING, restarts=1)
    assert jobs.states("other") == [JobState.PENDING]


@pytest.mark.slow
def test_what_could_not_be_started_again_is_not_preempted(jobs: Jobs) -> None:
    jobs.submit("once", priority="low", max_restarts=0)
    jobs.command("once")
    jobs.submit("urgent", priority="high")
    time.sleep(3)
    assert jobs.states("once", "urgent") == [JobState.RUNNING, JobState.PENDING]
    jobs.end("once")
    jobs.wait_for("urgent", JobState.RUNNING)
    assert jobs.states("once") == [JobState.SUCCEEDED]


def test_what_comes_after_waits_and_is_cancelled_with_the_reason(jobs: Jobs) -> None:
    jobs.submit("image")
    jobs.submit("align", after=("image",))
    jobs.submit("embed", after=("align",))
    jobs.wait_for("image", JobState.RUNNING)
    assert jobs.status("align").reason == "waits for image"
    jobs.end("image", "{data: 1")
    jobs.wait_for("image", JobState.FAILED)
    assert "exit code 2" in str(jobs.status("image").reason)
    why = jobs.wait_for("embed", JobState.CANCELLED).reason
    assert str(why).startswith("needs image, which is failed: exit code 2")
    until(lambda: mentioning(jobs.folder), lambda left: not left)
    # All is submitted again, and another attempt has other ids.
    jobs.submit("image")
    jobs.submit("align", after=("image",))
    jobs.wait_for("image", JobState.RUNNING)
    jobs.end("image")
    jobs.wait_for("align", JobState.RUNNING)
    jobs.submit("embed", after=("align",), max_restarts=7)
    assert jobs.states("embed") == [JobState.PENDING]


def test_cancel_is_final_running_or_waiting(jobs: Jobs) -> None:
    jobs.submit("runs")
    jobs.submit("waits")
    jobs.command("runs")
    assert jobs.desk.cancel("waits").status.state is JobState.CANCELLED
    command = jobs.command("runs")
    assert jobs.desk.cancel("runs").status.state in (JobState.RUNNING, JobState.CANCELLED)
    jobs.wait_for("runs", JobState.CANCELLED)
    assert not command.is_running()
    until(lambda: mentioning(jobs.folder), lambda left: not left)
    assert jobs.states("runs", "waits") == [JobState.CANCELLED] * 2
    assert jobs.desk.cancel("runs").status.state is JobState.CANCELLED


def test_who_does_not_leave_in_time_is_ended(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launchers.local.queue._GRACE_OF_COMMANDS_S", 0.5)
    jobs.submit("deaf")
    command = jobs.command("deaf")
    command.suspend()
    jobs.desk.cancel("deaf")
    until(lambda: jobs.states("deaf"), lambda states: states == [JobState.CANCELLED])
    assert not command.is_running()


def test_a_crash_is_restarted_and_the_log_followed_to_the_end(jobs: Jobs) -> None:
    jobs.submit("crashes", max_restarts=2)
    jobs.command("crashes")
    lines: list[str] = []
    follower = threading.Thread(target=lambda: lines.extend(jobs.desk.logs("crashes", follow=True)))
    follower.start()
    for restarts in range(3):
        jobs.wait_for("crashes", JobState.RUNNING, restarts)
        jobs.command("crashes").kill()
    failed = jobs.wait_for("crashes", JobState.FAILED, restarts=2)
    assert failed.reason == "killed by SIGKILL; no restarts left of 2"
    follower.join(10)
    assert not follower.is_alive()
    assert [line.split(" ", 2)[2] for line in lines] == ["start", "restart 1 of at most 2", "restart 2 of at most 2"]
    assert lines == list(jobs.desk.logs("crashes", follow=False))


@pytest.mark.slow
def test_a_time_limit_and_a_requeue_send_it_to_the_back(jobs: Jobs) -> None:
    jobs.submit("long", time_limit="2 s")
    jobs.submit("next")
    long = jobs.wait_for("long", JobState.REQUEUED)
    assert long.reason == "its time limit was over; waits for its turn"
    jobs.wait_for("next", JobState.RUNNING)
    assert jobs.desk.requeue("next").status.state in (JobState.RUNNING, JobState.REQUEUED)
    jobs.wait_for("long", JobState.RUNNING, restarts=1)
    assert jobs.status("next").reason == "was queued again; waits for its turn"
    with pytest.raises(ConfigError, match="only"):
        jobs.desk.requeue("next")


def test_the_death_of_a_supervisor_ends_its_command_and_frees_the_turn(jobs: Jobs) -> None:
    jobs.submit("dies")
    jobs.submit("next")
    command = jobs.command("dies")
    jobs.supervisor("dies").kill()
    psutil.wait_procs([command], timeout=5)
    assert not command.is_running()
    failed = jobs.status("dies")
    assert failed.state is JobState.FAILED
    assert "its supervisor died" in str(failed.reason)
    jobs.wait_for("next", JobState.RUNNING)
    jobs.submit("dies")
    assert jobs.states("dies") == [JobState.PENDING]
    jobs.supervisor("next").terminate()
    assert "told to end (SIGTERM)" in str(jobs.wait_for("next", JobState.FAILED).reason)
    jobs.wait_for("dies", JobState.RUNNING)
    jobs.end("dies")
    jobs.wait_for("dies", JobState.SUCCEEDED)


@pytest.mark.slow
def test_several_submits_at_once_start_one_job_each_and_one_at_a_time(jobs: Jobs) -> None:
    names = ["a", "b", "a", "b"]
    submits = []
    for number, name in enumerate(names):
        pipe = jobs.folder / f"{name}.yaml"
        if not pipe.exists():
            os.mkfifo(pipe)
        job = jobs.folder / f"job-{number}.yaml"
        job.write_text(f"{{name: {name}, launcher: {{name: local}}, command: [config, show, {pipe}]}}")
        command = [sys.executable, "-m", "astroclip_dist.cli", "jobs", "submit", str(job)]
        submits.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for submit in submits:
        output, _ = submit.communicate(timeout=PATIENCE_S)
        assert submit.returncode == 0, output
    for _ in range(2):
        running = until(
            lambda: [name for name in ("a", "b") if jobs.status(name).state is JobState.RUNNING], lambda now: now
        )
        time.sleep(0.5)
        assert [name for name in ("a", "b") if jobs.status(name).state is JobState.RUNNING] == running
        jobs.end(running[0])
        jobs.wait_for(running[0], JobState.SUCCEEDED)
    assert sorted(folder.name for folder in (JobRecords().folder / "local").iterdir() if folder.is_dir()) == [
        "a.0",
        "b.0",
    ]


def test_what_was_submitted_but_not_released_does_not_start(jobs: Jobs) -> None:
    jobs.end("held")
    values = {"name": "held", "launcher": {"name": "local"}, "command": ["config", "show", f"{jobs.folder}/held.yaml"]}
    tasks = tasks_of(validated(JobSpec, values))
    queue = LocalQueue(LocalPlace())
    assert queue.find("held", 0) is None
    assert queue.submit(tasks, 0) == queue.submit(tasks, 0) == ("held.0",)
    assert queue.find("held", 0) == "held.0"
    time.sleep(0.5)
    status = queue.statuses(["held.0", "strange.0"])
    assert status["held.0"].state is JobState.PENDING
    assert "never started" in str(status["held.0"].reason)
    assert status["strange.0"].state is JobState.UNKNOWN
    assert list(queue.logs("held.0", follow=True)) == []
    queue.release(["held.0"])
    queue.release(["held.0"])
    until(lambda: queue.statuses(["held.0"])["held.0"].state, lambda state: state is JobState.SUCCEEDED)


@pytest.mark.slow
def test_a_training_that_is_preempted_killed_and_submitted_again_ends_as_if_nothing_had_happened(
    jobs: Jobs, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    data, expected = undisturbed(tmp_path_factory.getbasetemp())
    run = tmp_path / "run"
    config = str(write_config(tmp_path, data, str(run)))

    def submit() -> None:
        jobs.submit("training", config=config, workers_per_node=2, priority="low")

    submit()
    until(lambda: jobs.log("training"), lambda log: "step 3/30" in log)
    jobs.submit("urgent", priority="high")
    jobs.wait_for("urgent", JobState.RUNNING)
    assert jobs.status("training").reason == "preempted by urgent; waits for its turn"
    [preempted] = event(run, "preempted")
    jobs.end("urgent")
    jobs.wait_for("training", JobState.RUNNING, restarts=1)
    until(lambda: jobs.log("training"), lambda log: f"step {preempted['step'] + 8}/30" in log)
    processes = jobs.supervisor("training").children(recursive=True)
    assert len(processes) >= 3
    jobs.supervisor("training").send_signal(signal.SIGKILL)
    assert not psutil.wait_procs(processes, timeout=10)[1]
    assert jobs.states("training") == [JobState.FAILED]
    submit()
    jobs.wait_for("training", JobState.SUCCEEDED)
    first, second = (entry["step"] for entry in event(run, "resumed"))
    assert first == preempted["step"] < second
    assert result(run) == expected
