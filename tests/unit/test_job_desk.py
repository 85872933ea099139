"""The desk between the records and an engine: the same job is there once, whoever is killed whenever."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from astroclip_dist.errors import ConfigError, StorageError
from astroclip_dist.store import Store
from astroclip_dist.train.event_log import EventLog
from astroclip_dist.train.holding import hold, stop_at_once
from launchers.jobs import desk as desk_module
from launchers.jobs.desk import Job, JobDesk
from launchers.jobs.places import LocalPlace, Place, RayPlace
from launchers.jobs.queue import JobQueue
from launchers.jobs.records import JobRecords
from launchers.jobs.spec import JobSpec
from launchers.jobs.status import JobState
from launchers.jobs.task import Task
from tests.unit.file_engine import FileEngine, Hooked


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileEngine:
    made = FileEngine(tmp_path / "engine.json")
    monkeypatch.setattr(desk_module, "queue_at", lambda place: made)
    return made


@pytest.fixture
def records(tmp_path: Path) -> JobRecords:
    return JobRecords(tmp_path / "jobs")


@pytest.fixture
def desk(records: JobRecords, engine: FileEngine) -> JobDesk:
    return JobDesk(records, again=["job.yaml"])


def task(name: str = "sky", argument: str = "list", place: Place | None = None, **job: Any) -> Task:
    spec = JobSpec(name="sky", command=("runs", argument, "s3://bucket/runs"), launcher=place or LocalPlace(), **job)
    return Task(name, spec, None)


def only(jobs: Sequence[Job]) -> Job:
    [job] = jobs
    return job


def test_the_same_job_is_submitted_once(desk: JobDesk, engine: FileEngine) -> None:
    first, second = desk.submit([task()])[0], desk.submit([task()])[0]
    assert (first.is_new, second.is_new) == (True, False)
    assert first.record.job_id == second.record.job_id == "sky.0"
    assert engine.state() == {"sky.0": "running"}
    engine.becomes("sky.0", "succeeded")
    assert not desk.submit([task()])[0].is_new


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_name_whose_job_is_over_gets_another_attempt(desk: JobDesk, engine: FileEngine, state: str) -> None:
    desk.submit([task()])
    engine.becomes("sky.0", state)
    assert desk.submit([task()])[0].is_new
    assert engine.state() == {"sky.0": state, "sky.1": "running"}
    assert only(desk.jobs(["sky"])).record.attempt == 1


def test_another_job_of_a_name_clashes_until_the_first_is_over(desk: JobDesk, engine: FileEngine) -> None:
    desk.submit([task()])
    with pytest.raises(ConfigError, match=r"name: sky\. Another job of that name is running: cancel it"):
        desk.submit([task(argument="show")])
    assert engine.state() == {"sky.0": "running"}
    engine.becomes("sky.0", "succeeded")
    assert desk.submit([task(argument="show")])[0].record.job_id == "sky.1"


def test_other_limits_are_the_same_job_and_told(desk: JobDesk) -> None:
    desk.submit([task(priority="low", max_restarts=3)])
    found = desk.submit([task(priority="high", max_restarts=3)])[0]
    assert (found.is_new, found.unlike) == (False, ("priority",))


def test_a_refused_submission_leaves_everything_as_it_was(
    desk: JobDesk, engine: FileEngine, records: JobRecords
) -> None:
    engine.refuses = True
    with pytest.raises(ConfigError, match="no such queue"):
        desk.submit([task("sky-0"), task("sky-1")])
    assert records.all() == []
    engine.refuses = False
    desk.submit([task("sky-0")])
    engine.becomes("sky-0.0", "failed")
    desk.jobs()
    before = records.all()
    engine.refuses = True
    with pytest.raises(ConfigError, match="no such queue"):
        desk.submit([task("sky-0"), task("sky-1")])
    assert records.all() == before


def test_a_sweep_and_a_pipeline_have_their_jobs_under_one_name(desk: JobDesk, engine: FileEngine) -> None:
    desk.submit([task("sky-0"), task("sky-1")], pipeline="survey")
    assert desk.names_of("survey") == ["sky-0", "sky-1"]
    assert [job.record.name for job in desk.jobs(["survey", "sky-1"])] == ["sky-0", "sky-1"]
    with pytest.raises(ConfigError, match="several jobs: choose one of sky-0, sky-1"):
        desk.logs("survey", follow=False)
    with pytest.raises(ConfigError, match="Did you mean 'sky-1'"):
        desk.jobs(["sky1"])
    with pytest.raises(ConfigError, match="No job has it"):
        desk.jobs(["../sky-0"])


def test_jobs_that_wait_for_others(desk: JobDesk, engine: FileEngine) -> None:
    desk.submit([task("sky-a"), task("sky-b"), task("sky-c")])
    engine.becomes("sky-b.0", "succeeded")
    desk.submit([task("sky-d")], after=["sky-a", "sky-b"])
    with engine.jobs() as jobs:
        # The engine may have forgotten the one that has succeeded.
        assert jobs["sky-d.0"]["after"] == ["sky-a.0"]
    engine.becomes("sky-c.0", "failed")
    with pytest.raises(ConfigError, match=r"after: sky-c\. It is failed, and has to succeed first"):
        desk.submit([task("sky-e")], after=["sky-c"])
    with pytest.raises(ConfigError, match="No job of that name"):
        desk.submit([task("sky-e")], after=["nowhere"])
    engine.depends = False
    with pytest.raises(ConfigError, match=r"after: sky-a\. local cannot start a job after others"):
        desk.submit([task("sky-e")], after=["sky-a"])
    assert "sky-e.0" not in engine.state()
    assert desk.submit([task("sky-e")], after=["sky-b"])[0].is_new


def test_an_engine_that_is_away_does_not_hide_the_jobs_of_others(
    desk: JobDesk, engine: FileEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = FileEngine(tmp_path / "other.json")
    monkeypatch.setattr(desk_module, "queue_at", lambda place: engine if place.name == "local" else other)
    desk.submit([task("here")])
    desk.submit([task("there", place=RayPlace(address="http://head:8265"))])
    desk.jobs()
    other.away = True
    here, there = desk.jobs()
    assert here.status.state is JobState.RUNNING
    assert there.status.state is JobState.UNKNOWN
    assert there.status.reason == "ray does not answer (engine: no answer. Wait.); last heard: running"
    for ask in (lambda: desk.jobs(["there"]), lambda: desk.cancel("there"), lambda: desk.requeue("there")):
        with pytest.raises(StorageError, match="no answer"):
            ask()
    with pytest.raises(StorageError, match="no answer"):
        desk.submit([task("there", place=RayPlace(address="http://head:8265"))])
    other.away = False
    assert [job.status.state for job in desk.jobs()] == [JobState.RUNNING, JobState.RUNNING]


def test_a_listing_asks_no_engine_after_what_ended_long_ago(desk: JobDesk, engine: FileEngine) -> None:
    desk.submit([task("sky-a"), task("sky-b"), task("sky-c")])
    now = datetime.now(UTC)
    engine.becomes("sky-a.0", "failed", now - timedelta(hours=2))
    engine.becomes("sky-b.0", "failed", now - timedelta(minutes=1))
    desk.jobs()
    engine.asked.clear()
    # Within minutes an engine can be made to start it again.
    engine.becomes("sky-b.0", "running")
    told = {job.record.name: job.status.state for job in desk.jobs()}
    assert told == {"sky-a": JobState.FAILED, "sky-b": JobState.RUNNING, "sky-c": JobState.RUNNING}
    assert engine.asked == ["sky-b.0", "sky-c.0"]
    # Who asks after it by its name hears what is so now, and the next listing with him.
    engine.becomes("sky-a.0", "running")
    assert only(desk.jobs(["sky-a"])).status.state is JobState.RUNNING
    assert desk.jobs()[0].status.state is JobState.RUNNING
    # Another attempt is asked after again.
    engine.becomes("sky-a.0", "failed", now - timedelta(hours=2))
    desk.jobs()
    assert desk.submit([task("sky-a")])[0].record.job_id == "sky-a.1"
    assert desk.jobs()[0].status.state is JobState.RUNNING


def test_what_was_over_is_over_while_its_engine_is_away(desk: JobDesk, engine: FileEngine) -> None:
    desk.submit([task("sky-a"), task("sky-b")])
    engine.becomes("sky-a.0", "succeeded", datetime.now(UTC))
    desk.jobs()
    engine.away = True
    assert [job.status.state for job in desk.jobs()] == [JobState.SUCCEEDED, JobState.UNKNOWN]
    with pytest.raises(StorageError, match="no answer"):
        desk.jobs(["sky-a"])
    engine.away = False
    engine.becomes("sky-a.0", "succeeded", datetime.now(UTC) - timedelta(hours=2))
    desk.jobs()
    engine.away = True
    assert only(desk.jobs(["sky-a"])).status.state is JobState.SUCCEEDED
    assert not desk.submit([task("sky-a")])[0].is_new


def test_a_job_that_was_over_when_its_engine_forgot_it_is_over(desk: JobDesk, engine: FileEngine) -> None:
    desk.submit([task()])
    engine.becomes("sky.0", "failed")
    desk.jobs()
    engine.becomes("sky.0", None)
    assert only(desk.jobs()).status.state is JobState.FAILED
    assert desk.cancel("sky").status.state is JobState.FAILED


def test_of_a_job_that_its_engine_forgot_the_run_folder_tells(
    desk: JobDesk, engine: FileEngine, records: JobRecords, tmp_path: Path
) -> None:
    desk.submit([task()])
    desk.jobs()
    run = Store(tmp_path / "run")
    records.add(records.all()[0], run=run.url)
    engine.becomes("sky.0", None)
    job = only(desk.jobs())
    assert (job.status.state, job.known) == (JobState.UNKNOWN, False)
    assert job.status.reason == "local does not know job sky.0 any more; last heard: running"
    with hold(run, "local", stop_at_once):
        job = only(desk.jobs())
        assert job.status.state is JobState.RUNNING
        assert "held by the local launcher on" in str(job.status.reason)
        with pytest.raises(ConfigError, match=r"held by the local launcher on .*: stop it there"):
            desk.cancel("sky")
        assert not desk.submit([task()])[0].is_new
    with EventLog(run) as log:
        log.write("preempted", step=7, reason="SIGTERM")
    assert "the run: left at step 7, saved: SIGTERM" in str(only(desk.jobs()).status.reason)
    with EventLog(run) as log:
        log.write("finished", step=9)
    assert only(desk.jobs()).status.state is JobState.SUCCEEDED
    assert not desk.submit([task()])[0].is_new


def test_a_forgotten_job_that_nobody_runs_can_be_cancelled_or_submitted_again(
    desk: JobDesk, engine: FileEngine
) -> None:
    desk.submit([task()])
    engine.becomes("sky.0", None)
    assert desk.submit([task()])[0].record.job_id == "sky.1"
    engine.becomes("sky.1", None)
    assert desk.cancel("sky").status.state is JobState.CANCELLED
    assert only(desk.jobs()).status.state is JobState.CANCELLED


def test_only_what_runs_is_requeued(desk: JobDesk, engine: FileEngine) -> None:
    desk.submit([task()])
    assert desk.requeue("sky").status.state is JobState.REQUEUED
    with pytest.raises(ConfigError, match="It is requeued, and only what runs can be requeued: wait"):
        desk.requeue("sky")
    engine.becomes("sky.0", "failed")
    with pytest.raises(ConfigError, match="It is failed, and only what runs can be requeued: submit it again"):
        desk.requeue("sky")


def _in_child(work: Callable[[], object]) -> int:
    """The exit code of another process, -9 if it was killed; without what pytest would do at its end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _submit_killed(
    records: JobRecords, engine: JobQueue, tasks: Sequence[Task], moment: int, monkeypatch: pytest.MonkeyPatch
) -> bool:
    """Submit in a process that is killed at the given call of the engine or of the records; False when it came to its
    end before."""

    def submit() -> None:
        calls = 0

        def hook(what: str) -> None:
            nonlocal calls
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(desk_module, "queue_at", lambda place: Hooked(engine, hook))
        for name in ("write", "add", "_replace"):
            monkeypatch.setattr(records, name, getattr(Hooked(records, hook), name))
        JobDesk(records).submit(tasks)

    code = _in_child(submit)
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.parametrize(
    ("earlier", "then"),
    [
        (None, "list"),
        (None, "status"),
        (None, "submit"),
        (None, "cancel"),
        pytest.param("failed", "submit", marks=pytest.mark.slow),
    ],
)
def test_a_submit_killed_at_any_moment_loses_nothing(
    earlier: str | None, then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [task("sky-0"), task("sky-1")]
    seen = set()
    for moment in range(1, 1000):
        engine, records = FileEngine(tmp_path / f"{moment}.json"), JobRecords(tmp_path / f"{moment}")
        monkeypatch.setattr(desk_module, "queue_at", lambda place, engine=engine: engine)
        desk = JobDesk(records)
        if earlier is not None:
            desk.submit(tasks)
            for job_id in list(engine.state()):
                engine.becomes(job_id, earlier)
        if not _submit_killed(records, engine, tasks, moment, monkeypatch):
            break
        left = {job_id: state for job_id, state in engine.state().items() if state != earlier}
        seen.add(tuple(left.values()))
        if then == "list":
            _everything_is_listed(desk.jobs(), left)
        elif then == "status":
            names = [record.name for record in records.all()]
            _everything_is_listed([job for name in names for job in desk.jobs([name])], left)
        elif then == "submit":
            desk.submit(tasks)
            attempt = 0 if earlier is None else 1
            running = {job_id for job_id, state in engine.state().items() if state == "running"}
            assert running == {f"sky-0.{attempt}", f"sky-1.{attempt}"}
            with engine.jobs() as jobs:
                assert all(job["submitted"] == 1 for job in jobs.values())
        else:
            for record in records.all():
                assert desk.cancel(record.name).status.state.is_over
            assert not {"held", "running"} & set(engine.state().values())
    else:
        pytest.fail("the submit never came to its end")
    # It was killed before the engine had the jobs, while they were held, and when they had started.
    assert seen == {(), ("held", "held"), ("running", "running")}


def _everything_is_listed(jobs: Sequence[Job], left: dict[str, str]) -> None:
    told = {job.record.job_id: job for job in jobs}
    assert set(left) <= set(told)
    for job_id, state in left.items():
        status = told[job_id].status
        if state == "held":
            assert status.state is JobState.PENDING
            assert "its submit did not come to its end: submit it again, or cancel it" in str(status.reason)
        else:
            assert status.state is JobState.RUNNING
    for job in jobs:
        if job.record.job_id is None:
            assert (job.status.state, job.status.reason) == (JobState.UNKNOWN, "was never handed over to local")


def test_several_submits_at_once_hand_over_one_job(records: JobRecords, engine: FileEngine, tmp_path: Path) -> None:
    ready, go = os.pipe()

    def submit() -> None:
        os.close(go)
        os.read(ready, 1)
        new = JobDesk(records).submit([task()])[0].is_new
        with (tmp_path / "new").open("a") as file:
            file.write("n" if new else "o")

    children = []
    for _ in range(4):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                submit()
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    # All of them read the end of the pipe at the same moment.
    os.close(ready)
    os.close(go)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
    assert sorted((tmp_path / "new").read_text()) == ["n", "o", "o", "o"]
    with engine.jobs() as jobs:
        assert {job_id: job["submitted"] for job_id, job in jobs.items()} == {"sky.0": 1}
