"""What is kept of submitted jobs, read and written by several processes at once."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import pytest

from astroclip_dist.errors import ConfigError, DataError, StorageError
from launchers.jobs.places import LocalPlace, SlurmPlace
from launchers.jobs.records import JobRecord, JobRecords
from launchers.jobs.status import JobState, JobStatus

RUNNING = JobStatus(JobState.RUNNING, nodes=("n1", "n2"), restarts=2)


def record(name: str = "sky", **values: object) -> JobRecord:
    return JobRecord(
        **{"name": name, "digest": "0", "place": SlurmPlace(notice=30.0), "submitted": "2026-01-01T00:00:00Z"} | values
    )


@pytest.fixture
def records(tmp_path: Path) -> JobRecords:
    return JobRecords(tmp_path / "jobs")


def test_a_record_is_read_as_it_was_written(records: JobRecords) -> None:
    written = record(last=RUNNING, again=("job.yaml", "nodes=2"), limits={"time_limit": "60.0 s"}, run="s3://b/run")
    records.write(written)
    assert records.read("sky") == written
    assert records.read("other") is None


def test_the_folder_is_that_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("ASTROCLIP_JOBS", raising=False)
    assert JobRecords().folder == tmp_path / "state/astroclip/jobs"
    monkeypatch.setenv("ASTROCLIP_JOBS", str(tmp_path / "mine"))
    assert JobRecords().folder == tmp_path / "mine"


def test_what_was_heard_of_an_earlier_submission_is_dropped(records: JobRecords) -> None:
    earlier, later = record(job_id="7"), record(attempt=1)
    records.write(earlier)
    assert records.add(earlier, last=RUNNING).last == RUNNING
    records.write(later)
    assert records.add(earlier, last=RUNNING) == later
    assert records.read("sky") == later
    assert records.add(later, job_id="8").job_id == "8"
    # Who saw the record before the id was known, and heard another id, is wrong.
    assert records.add(later, job_id="9").job_id == "8"


def test_a_damaged_record_is_named_and_hides_no_other(records: JobRecords, caplog: pytest.LogCaptureFixture) -> None:
    records.write(record("sky"))
    (records.folder / "torn.json").write_text('{"name": "torn"')
    (records.folder / "Not A Name.json").write_text("{}")
    with pytest.raises(DataError, match=r"torn\.json: not a job's record\. Move the file away"):
        records.read("torn")
    with caplog.at_level(logging.ERROR):
        assert [one.name for one in records.all()] == ["sky"]
    assert "torn.json" in caplog.text
    assert "Not A Name" in caplog.text


def test_a_name_that_another_process_changes_is_waited_for(records: JobRecords) -> None:
    other = JobRecords(records.folder)
    with records.changing("sky"):
        assert records.changed_by("sky") is None
        with pytest.raises(ConfigError, match=rf"Process {os.getpid()} on {socket.gethostname()} is at this job: wait"):
            other.changing("sky", patience_s=0.0).__enter__()
        with other.changing("another", patience_s=0.0):
            pass
    with other.changing("sky", patience_s=0.0):
        pass


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    records = JobRecords(tmp_path / "file" / "jobs")
    with pytest.raises(StorageError, match="Set ASTROCLIP_JOBS to a folder that can be written"):
        records.write(record(place=LocalPlace()))
    with pytest.raises(StorageError, match="Choose a folder that can be written"):
        records.changing("sky").__enter__()
