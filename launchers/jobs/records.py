"""What this user has submitted: one small file a job, so that names stay known when an engine has forgotten its jobs.

They lie in ``$ASTROCLIP_JOBS``, else in ``~/.local/state/astroclip/jobs``. A record is written before the engine is
asked: whoever is killed in between leaves a name under which the job is found, and can be cancelled or submitted again.
Whoever submits or ends a job holds its name meanwhile; what others hear of it they add to the record as it is then.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from astroclip_dist.errors import ConfigError, DataError, StorageError, UserError
from astroclip_dist.train.holding.lock_file import LockedError, hold_lock_file, read_lock_file
from launchers.jobs.places import Place
from launchers.jobs.spec import job_name
from launchers.jobs.status import JobState, JobStatus

# An engine may take its time to answer another process that submits the same name.
_PATIENCE_S = 30.0
log = logging.getLogger(__name__)


class JobRecord(BaseModel):
    """One task that was submitted.

    Attributes:
        digest: of the task (``Task.digest``).
        attempt: how often the name was submitted before, after its job was over.
        job_id: the engine's; None while the engine is being asked.
        released: whether the engine was told that the job may start.
        submitted: ISO 8601, UTC.
        again: the arguments of ``astroclip jobs submit`` that gave the task.
        limits: what the job asked of its queue (``Task.limits``).
        run: URL of the run folder, for a training.
        last: what the engine was last heard to say; what counts when it has forgotten the job.
        settled: whether ``last`` is final: a listing asks no engine after the job any more.
        sweep, pipeline: the names of those that it belongs to.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    digest: str
    attempt: Annotated[int, Field(ge=0)] = 0
    place: Place
    job_id: str | None = None
    released: bool = False
    submitted: str
    again: tuple[str, ...] = ()
    limits: dict[str, Any] = Field(default_factory=dict)
    run: str | None = None
    last: JobStatus = JobStatus(JobState.PENDING)
    settled: bool = False
    sweep: str | None = None
    pipeline: str | None = None


class JobRecords:
    """The records of one user; any number of processes may read and change them."""

    def __init__(self, folder: Path | None = None) -> None:
        given = os.environ.get("ASTROCLIP_JOBS")
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
        self.folder = folder or (Path(given) if given else Path(state) / "astroclip/jobs")
        self._me = f"{os.getpid()} on {socket.gethostname()}"

    @contextmanager
    def changing(self, name: str, patience_s: float = _PATIENCE_S) -> Iterator[None]:
        """Be the only process that submits or ends the job of a name; another one that does is waited for.

        Raises:
            ConfigError: another process still does after ``patience_s`` seconds.
            StorageError: the folder cannot be written.
        """
        deadline = time.monotonic() + patience_s
        with ExitStack() as held:
            while True:
                try:
                    held.enter_context(hold_lock_file(self._path(name, "lock"), self._me.encode()))
                    break
                except LockedError as error:
                    if time.monotonic() > deadline:
                        mend = f"Process {error.content.decode() or '?'} is at this job: wait for it, or end it."
                        raise ConfigError("name", name, mend) from error
            yield

    def changed_by(self, name: str) -> str | None:
        """Which other process submits or ends the job of a name right now."""
        content = read_lock_file(self._path(name, "lock"))
        return None if content is None or content.decode() == self._me else content.decode() or "?"

    def read(self, name: str) -> JobRecord | None:
        """The record of a name, None where it was never submitted.

        Raises:
            ConfigError: no name of a job.
            DataError: the file is damaged.
            StorageError: it cannot be read.
        """
        path = self._path(name)
        try:
            return JobRecord.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(str(path), error.strerror, "Check the folder and its rights.") from error
        except ValidationError as error:
            raise DataError(
                str(path), "not a job's record", "Move the file away; the engine still has the job."
            ) from error

    def all(self) -> list[JobRecord]:
        """All records that can be read, by name; of others it is logged that they cannot."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                if (record := self.read(path.stem)) is not None:
                    found.append(record)
            except UserError as error:
                log.error("left out: %s", error)
        return found

    def write(self, record: JobRecord) -> None:
        """Replace the record of a name, which this process is ``changing``."""
        with self._writing():
            self._replace(record)

    def withdraw(self, name: str, before: JobRecord | None) -> None:
        """Take back what was written of a name."""
        with self._writing():
            if before is None:
                self._path(name).unlink(missing_ok=True)
            else:
                self._replace(before)

    def add(self, seen: JobRecord, **heard: Any) -> JobRecord:
        """Add what was heard of a job whose record was seen before; dropped where the name has had another submission
        or id since.

        Returns:
            The record as it is now.
        """
        with self._writing():
            now = self.read(seen.name)
            if now is None or (now.attempt, now.submitted) != (seen.attempt, seen.submitted):
                return now or seen
            if now.job_id not in (None, heard.get("job_id", seen.job_id)):
                return now
            now = now.model_copy(update=heard)
            self._replace(now)
            return now

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Between a record's reading and its replacement nobody else may replace it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / ".writing").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise StorageError(
                str(self.folder),
                error.strerror or str(error),
                "Set ASTROCLIP_JOBS to a folder that can be written, on a file system with locks.",
            ) from error

    def _replace(self, record: JobRecord) -> None:
        aside = self._path(record.name, "new")
        with aside.open("w") as file:
            file.write(record.model_dump_json(indent=1))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self._path(record.name))

    def _path(self, name: str, kind: str = "json") -> Path:
        try:
            return self.folder / f"{job_name(name)}.{kind}"
        except ValueError as error:
            raise ConfigError("name", repr(name), f"No job has it: {error}.") from error
