"""One job of this machine as files in a folder.

``job.json`` says what is to be run and is written once, by whoever submits. ``state.json`` says how that goes and is
written by the job's supervisor alone, which has the kernel's lock on ``supervisor.lock`` for as long as it lives: by
that it is known to live, not by a process id, which others may get. ``cancel`` and ``requeue`` are requests to it.
``log`` has what the command printed.

A supervisor waits beside others for hours: this file, and all that it imports, is small.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

from astroclip_dist.errors import DataError, StorageError
from launchers.jobs.status import JobState
from launchers.local.kernel_lock import is_held, take_lock

# Whoever looks at a lock has it for a moment.
_LOCK_PATIENCE_S = 1.0
_ENOUGH_OF_LOG = 4096

T = TypeVar("T")


class Priority(IntEnum):
    """Which of two jobs goes first."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


@dataclass(frozen=True)
class LocalJob:
    """What is to be run.

    Attributes:
        name: of the task.
        arguments: of ``astroclip``.
        environment: variables over those of whoever submits.
        secrets: names of variables that come from whoever submits, and are not written down.
        directory: in which the command runs.
        after: ids of jobs that must have succeeded.
        place: in the order of submission among jobs of one priority.
        time_limit: of one start, seconds.
        max_restarts: whatever the cause.
        grace: seconds between the request to save and leave, and the end by force.
        submitted: ISO 8601, UTC.
    """

    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    secrets: tuple[str, ...]
    directory: str
    after: tuple[str, ...]
    priority: Priority
    place: int
    time_limit: float | None
    max_restarts: int
    grace: float
    submitted: str


@dataclass(frozen=True)
class LocalState:
    """How a job goes, as its supervisor has written it.

    Attributes:
        place: as in ``LocalJob``; a later one once the job has gone to the back.
        supervisor: its process id, for people to read; None until it has come to itself.
        pid: of the command, while it runs.
        started, ended: ISO 8601, UTC; ``started`` is the last start.
    """

    state: JobState
    place: int
    supervisor: int | None
    reason: str | None = None
    restarts: int = 0
    pid: int | None = None
    started: str | None = None
    ended: str | None = None


class JobFolder:
    """The folder of one attempt at one job; its name is the job's id, ``NAME.ATTEMPT``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name

    def __repr__(self) -> str:
        return f"JobFolder({self.path})"

    @cached_property
    def job(self) -> LocalJob:
        job = _read(self.path / "job.json", _as_job)
        if job is None:
            raise DataError(str(self.path), "it is no job's folder any more", "Submit the job again.")
        return job

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def exists(self) -> bool:
        return (self.path / "job.json").exists()

    def create(self, job: LocalJob) -> Self:
        """Write down a job; it is there once ``job.json`` is."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.log.touch(0o600)
            _replace(self.path / "job.json", asdict(job))
        except OSError as error:
            raise StorageError(
                self.path.as_uri(), error.strerror, "Set ASTROCLIP_JOBS to a folder of yours."
            ) from error
        return self

    def write_state(self, state: LocalState) -> None:
        _replace(self.path / "state.json", asdict(state))

    def settled_state(self) -> tuple[LocalState | None, bool]:
        """The state, None where no supervisor has begun; and whether a supervisor lives that may change it."""
        state = self._read_state()
        while state is None or not state.state.is_over:
            if is_held(self.path / "supervisor.lock"):
                return state, True
            # What was read before the lock was seen free may have been overtaken.
            if (last := self._read_state()) == state:
                return state, False
            state = last
        return state, False

    def ask(self, request: str) -> None:
        """Leave a request to the supervisor: ``cancel`` or ``requeue``."""
        (self.path / request).touch()

    def asked(self, request: str) -> bool:
        return (self.path / request).exists()

    def forget(self, request: str) -> None:
        (self.path / request).unlink(missing_ok=True)

    def start_supervisor(self) -> None:
        """Start the job's supervisor, once; it outlives this process and its terminal.

        The lock that says that it lives is taken here and inherited: there is no moment in which nobody has it.
        """
        if self._read_state() is not None or self.asked("cancel"):
            return
        lock = take_lock(self.path / "supervisor.lock", _LOCK_PATIENCE_S)
        if lock is None:
            return
        try:
            if self._read_state() is not None:
                return
            # Before it begins: should it die on its way, it is known to have been started.
            self.write_state(LocalState(JobState.PENDING, self.job.place, None))
            with self.log.open("ab") as log:
                # Not a child of this process: nobody would have to wait for it.
                subprocess.run(
                    ["setsid", "--fork", sys.executable, "-P", "-m", "launchers.local.supervisor", str(self.path)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.job.directory,
                    pass_fds=(lock,),
                    check=True,
                )
        except (OSError, subprocess.CalledProcessError) as error:
            raise StorageError(
                self.path.as_uri(), f"its supervisor does not start: {error}", "Submit again."
            ) from error
        finally:
            os.close(lock)

    def last_line(self) -> str | None:
        """The last that was printed."""
        with self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _ENOUGH_OF_LOG))
            lines = log.read().decode(errors="replace").split("\n")
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), None)

    def _read_state(self) -> LocalState | None:
        return _read(self.path / "state.json", _as_state)


def _as_job(values: dict[str, Any]) -> LocalJob:
    lists = {key: tuple(values[key]) for key in ("arguments", "secrets", "after")}
    return LocalJob(**{**values, **lists, "priority": Priority(values["priority"])})


def _as_state(values: dict[str, Any]) -> LocalState:
    return LocalState(**{**values, "state": JobState(values["state"])})


def _read(path: Path, parse: Callable[[dict[str, Any]], T]) -> T | None:
    """None where there is no file."""
    try:
        return parse(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(str(path), f"damaged ({error})", "Remove its folder, and submit the job again.") from error


def _replace(path: Path, values: dict[str, Any]) -> None:
    aside = path.with_suffix(".new")
    with aside.open("w") as file:
        json.dump(values, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
