"""What the queue of this machine refuses, shows and writes down."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from astroclip_dist.config.strict import validated
from astroclip_dist.errors import ConfigError
from launchers.jobs.desk import JobDesk
from launchers.jobs.places import LocalPlace
from launchers.jobs.records import JobRecords
from launchers.jobs.spec import JobSpec
from launchers.jobs.status import JobState
from launchers.jobs.task import Task, tasks_of
from launchers.local.job_folder import JobFolder, LocalState, Priority
from launchers.local.kernel_lock import is_held, take_lock
from launchers.local.queue import LocalQueue

TRAINING = """
{data: /data, run: /run, length: 1 steps, batch: {global_size: 8}, optimizer: {lr: 1e-3},
 health: {preemption_deadline: 5 min}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "training.yaml").write_text(TRAINING)
    monkeypatch.setenv("ASTROCLIP_JOBS", str(tmp_path / "jobs"))
    return tmp_path


def tasks(folder: Path, **values: Any) -> tuple[Task, ...]:
    what = {} if "command" in values else {"config": str(folder / "training.yaml")}
    return tasks_of(validated(JobSpec, {"name": "image", "launcher": {"name": "local"}, **what, **values}))


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"nodes": 2}, "nodes"),
        ({"queue": "gpu"}, "queue"),
        ({"image": "site/astroclip:1"}, "image"),
        ({"gpus_per_node": 1000, "workers_per_node": 1}, "gpus_per_node"),
        ({"cpus_per_node": 100_000}, "cpus_per_node"),
        ({"memory_per_node": "1000 TB"}, "memory_per_node"),
        ({"priority": "urgent"}, "priority"),
        ({"secrets": ["UNKNOWN_TO_ALL"]}, "secrets"),
        ({"sweep": {"seed": list(range(201))}}, "sweep"),
    ],
)
def test_what_this_machine_has_not_is_refused(folder: Path, values: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as told:
        LocalQueue(LocalPlace()).check(tasks(folder, **values))
    assert told.value.field == field
    assert not (folder / "jobs").exists()


def test_a_hidden_gpu_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="may use 0"):
        LocalQueue(LocalPlace()).check(tasks(folder, gpus_per_node=1))


def test_a_job_file_has_all_but_the_secrets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-from-all")
    queue = LocalQueue(LocalPlace())
    [task] = tasks(
        folder,
        secrets=["AWS_SECRET_ACCESS_KEY"],
        environment={"OMP_NUM_THREADS": "1"},
        priority="high",
        time_limit="1 h",
        max_restarts=3,
    )
    queue.check([task])
    [shown] = yaml.safe_load_all(queue.render([task]))
    assert shown["command"] == "astroclip train env:ASTROCLIP_CONFIG"
    assert yaml.safe_load(shown["environment"]["ASTROCLIP_CONFIG"])["run"] == "file:///run"
    assert (shown["priority"], shown["time_limit"], shown["max_restarts"]) == ("high", 3600, 3)
    assert shown["secrets"] == ["AWS_SECRET_ACCESS_KEY"]
    # The launcher of a run gives its workers their deadline and some more.
    assert shown["grace"] > 5 * 60 + 15

    [job_id] = queue.submit([task], 0)
    job = JobFolder(folder / "jobs/local" / job_id).job
    assert job.priority is Priority.HIGH
    assert job.environment["OMP_NUM_THREADS"] == "1"
    assert job.arguments == task.arguments
    written = [path for path in (folder / "jobs").rglob("*") if path.is_file()]
    assert written
    assert not any(b"hidden-from-all" in path.read_bytes() for path in written)
    assert "hidden-from-all" not in queue.render([task])


def test_places_count_on_and_a_sweep_has_one_each(folder: Path) -> None:
    queue = LocalQueue(LocalPlace())
    ids = queue.submit(tasks(folder, sweep={"seed": [1, 2]}), 0)
    [last] = queue.submit(tasks(folder, name="next"), 3)
    assert (*ids, last) == ("image-0.0", "image-1.0", "next.3")
    assert [JobFolder(folder / "jobs/local" / job_id).job.place for job_id in (*ids, last)] == [1, 2, 3]
    queue.cancel(last)
    assert queue.statuses([last])[last].state is JobState.CANCELLED
    queue.release([last])
    assert queue.statuses([last])[last].state is JobState.CANCELLED
    for refused in (lambda: queue.submit(tasks(folder, name="z"), 0, ["no.0"]), lambda: queue.cancel("no.0")):
        with pytest.raises(ConfigError, match=r"no\.0"):
            refused()


@pytest.mark.parametrize("name", ["state.json", "job.json"])
@pytest.mark.parametrize("text", ['{"state": ', '{"state": "running", "more": 1}', "[]"])
def test_a_damaged_file_is_named_and_stands_in_nobodys_way(folder: Path, name: str, text: str) -> None:
    queue = LocalQueue(LocalPlace())
    [damaged] = queue.submit(tasks(folder), 0)
    [other] = queue.submit(tasks(folder, name="other"), 0)
    (folder / "jobs/local" / damaged / name).write_text(text)
    told = queue.statuses([damaged, other])
    assert told[damaged].state is JobState.UNKNOWN
    assert name in str(told[damaged].reason)
    assert told[other].state is JobState.PENDING
    assert queue.submit(tasks(folder, name="last"), 0)


def test_a_job_whose_supervisor_died_on_its_way_has_failed_and_is_submitted_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, dead = JobDesk(JobRecords()), tasks(folder, command=["runs", "list"])
    with monkeypatch.context() as patch:
        # Instead of Python: a supervisor that is gone before it has written a word.
        patch.setattr(sys, "executable", shutil.which("true"))
        desk.submit(dead)
    job = JobFolder(folder / "jobs/local/image.0")
    while job.settled_state()[1]:
        time.sleep(0.01)
    [found] = desk.jobs(["image"])
    assert found.status.state is JobState.FAILED
    assert "its supervisor died" in str(found.status.reason)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", shutil.which("true"))
        assert desk.submit(dead)[0].record.job_id == "image.1"


def test_what_may_not_be_started_again_is_not_requeued(folder: Path) -> None:
    queue = LocalQueue(LocalPlace())
    [once] = queue.submit(tasks(folder, max_restarts=1), 0)
    job = JobFolder(folder / "jobs/local" / once)
    job.write_state(LocalState(JobState.RUNNING, 1, os.getpid(), restarts=1))
    lock = take_lock(job.path / "supervisor.lock")
    assert lock is not None
    with pytest.raises(ConfigError, match=r"max_restarts: 1\. It was started again so often"):
        queue.requeue(once)
    assert not job.asked("requeue")
    os.close(lock)


def test_a_lock_is_held_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "turn.lock"
    assert not is_held(path)
    lock = take_lock(path)
    assert lock is not None
    assert is_held(path)
    assert take_lock(path, patience_s=0.05) is None
    os.close(lock)
    assert not is_held(path)
