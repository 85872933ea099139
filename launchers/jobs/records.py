"""What this user has submitted: one small file a job, so that names stay known when an engine has forgotten its jobs.

They lie in ``$ASTROCLIP_JOBS``, else in ``~/.local/state/astroclip/jobs``. A record is written before the engine is
asked: whoever is killed in between leaves a name under which the job is found, and can be cancelled or submitted again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from astroclip_dist.errors import ConfigError, DataError
from astroclip_dist.train.holding.lock_file import LockedError, hold_lock_file
from launchers.jobs.places import Place
from launchers.jobs.status import JobState


class JobRecord(BaseModel):
    """One task that was submitted.

    Attributes:
        digest: of the task (``Task.digest``).
        attempt: how often the name was submitted before, after its job was over.
        job_id: the engine's; None while the engine is being asked.
        submitted: ISO 8601, UTC.
        run: URL of the run folder, for a training.
        last_state: the last that the engine was heard to say; what counts when it has forgotten the job.
        pipeline: the name of the pipeline that it belongs to.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    digest: str
    attempt: Annotated[int, Field(ge=0)] = 0
    place: Place
    job_id: str | None = None
    submitted: str
    run: str | None = None
    last_state: JobState = JobState.PENDING
    last_reason: str | None = None
    pipeline: str | None = None


class JobRecords:
    """The records of one user."""

    def __init__(self, folder: Path | None = None) -> None:
        given = os.environ.get("ASTROCLIP_JOBS")
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
        self.folder = folder or (Path(given) if given else Path(state) / "astroclip/jobs")

    @contextmanager
    def changing(self, name: str) -> Iterator[None]:
        """Be the only process that submits or changes a name.

        Raises:
            ConfigError: another process does.
        """
        try:
            with hold_lock_file(self.folder / f"{name}.lock", str(os.getpid()).encode()):
                yield
        except LockedError as error:
            raise ConfigError(
                "name", name, f"Process {error.content.decode() or '?'} is at this job: wait for it to end."
            ) from error

    def read(self, name: str) -> JobRecord | None:
        """The record of a name, None where it was never submitted.

        Raises:
            DataError: the file is damaged.
        """
        path = self._path(name)
        try:
            return JobRecord.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise DataError(
                str(path), "not a job's record", "Move the file away; the engine still has the job."
            ) from error

    def names(self) -> list[str]:
        """All that were submitted, by name."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def write(self, record: JobRecord) -> None:
        """Replace the record of a name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self._path(record.name).with_suffix(".new")
        with aside.open("w") as file:
            file.write(record.model_dump_json(indent=1))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self._path(record.name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"
