"""Jobs whose storage refuses them: over at once, with the reason, and nothing left running."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from astroclip_dist.config.strict import validated
from launchers.jobs.desk import JobDesk
from launchers.jobs.records import JobRecords
from launchers.jobs.spec import JobSpec
from launchers.jobs.status import JobState
from launchers.jobs.task import tasks_of
from tests.random_survey import write_random_survey
from tests.system.conftest import RealObjectStore
from tests.system.training_runs import CONFIG, write_config

pytestmark = pytest.mark.slow
PATIENCE_S = 120.0


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobDesk]:
    monkeypatch.setenv("ASTROCLIP_JOBS", str(tmp_path / "jobs"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    desk = JobDesk(JobRecords())
    yield desk
    for job in desk.jobs():
        desk.cancel(job.record.name)


def test_a_run_folder_that_cannot_be_written_fails_its_job_with_the_reason(
    desk: JobDesk, object_store: RealObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = object_store.create_bucket("job-storage")
    write_random_survey(str(tmp_path / "data"), 40)
    config = write_config(tmp_path, str(tmp_path / "data"), f"{bucket}/run", CONFIG)
    for name, value in object_store.reader.items():
        monkeypatch.setenv(name, value)
    values = {
        "name": "refused",
        "config": str(config),
        "launcher": {"name": "local"},
        "workers_per_node": 2,
        "secrets": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
    }
    desk.submit(tasks_of(validated(JobSpec, values)))
    deadline = time.monotonic() + PATIENCE_S
    while not (status := desk.jobs(["refused"])[0].status).state.is_over:
        assert time.monotonic() < deadline, status
        time.sleep(0.2)
    assert status.state is JobState.FAILED
    assert status.restarts == 0
    assert "access refused" in (status.reason or "")
    log = "\n".join(desk.logs("refused", follow=False))
    assert f"{bucket}/run" in log
    assert object_store.reader["AWS_SECRET_ACCESS_KEY"] not in log
    kept = [path.read_text() for path in (tmp_path / "jobs").rglob("*") if path.is_file()]
    assert not any(object_store.reader["AWS_SECRET_ACCESS_KEY"] in text for text in kept)
    mine = [process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(process.info["cmdline"])]
    assert not mine
