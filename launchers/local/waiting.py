"""All jobs of this machine's queue: how each goes, and whose turn it is."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from astroclip_dist.errors import DataError
from launchers.jobs.status import JobState, JobStatus
from launchers.local.job_folder import JobFolder, LocalState
from launchers.local.kernel_lock import is_held

_DEAD = "its supervisor died (killed, or the machine was restarted): submitted again, it goes on"
_NOT_STARTED = "was never started: submit it again"


class LocalJobs:
    """The queue's folder, in which every job has one of its own.

    Args:
        folder: holds them and ``turn.lock``, which whoever runs a command holds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.turn_lock = folder / "turn.lock"
        self._folders: dict[str, JobFolder] = {}
        self._over: dict[str, JobStatus] = {}

    def folder_of(self, job_id: str) -> JobFolder | None:
        """None where there is no such job."""
        if job_id not in self._folders:
            folder = JobFolder(self.folder / job_id)
            if not folder.exists:
                return None
            self._folders[job_id] = folder
        return self._folders[job_id]

    def status(self, job_id: str) -> JobStatus:
        """How a job goes: as its supervisor says, as long as that lives; what has to come of a request or of a failed
        predecessor is said before the supervisor has come to it."""
        if job_id in self._over:
            return self._over[job_id]
        folder = self.folder_of(job_id)
        if folder is None:
            return JobStatus(JobState.UNKNOWN, f"{self.folder} has no job {job_id}")
        try:
            state, supervised = folder.settled_state()
            status = self._judged(folder, state, supervised)
        except DataError as error:
            return JobStatus(JobState.UNKNOWN, str(error))
        if state is not None and not supervised:
            self._over[job_id] = status
        return status

    def broken_predecessor(self, folder: JobFolder) -> str | None:
        """Why a job can never start: the first of those that it needs, directly or not, which has not succeeded."""
        for job_id in folder.job.after:
            status = self.status(job_id)
            if status.state in (JobState.FAILED, JobState.CANCELLED, JobState.UNKNOWN):
                before = self.folder_of(job_id) if status.state is JobState.CANCELLED else None
                if before is not None and (root := self.broken_predecessor(before)) is not None:
                    return root
                why = f": {status.reason}" if status.reason else ""
                return f"needs {_name(job_id)}, which is {status.state}{why}"
        return None

    def is_ready(self, folder: JobFolder) -> bool:
        """Whether all that a job waits for has succeeded."""
        return all(self.status(job_id).state is JobState.SUCCEEDED for job_id in folder.job.after)

    def first(self) -> JobFolder | None:
        """The job whose turn it is: of those that wait and are ready the one of the highest priority, then the
        earliest."""
        waiting = [
            (-folder.job.priority, _place(folder, state), folder.id, folder)
            for folder, state, supervised in self._not_over()
            if supervised and self._waits(folder, state) and self.is_ready(folder)
        ]
        return min(waiting)[-1] if waiting else None

    def last_place(self) -> int:
        """Of all jobs that are not over."""
        return max((_place(folder, state) for folder, state, _ in self._not_over()), default=0)

    @property
    def turn_is_free(self) -> bool:
        return not is_held(self.turn_lock)

    def _not_over(self) -> Iterator[tuple[JobFolder, LocalState | None, bool]]:
        """Jobs with their states, and whether their supervisors live. One whose files are damaged stands in nobody's
        way."""
        for path in sorted(self.folder.glob("*/job.json")):
            if path.parent.name in self._over or (folder := self.folder_of(path.parent.name)) is None:
                continue
            try:
                state, supervised = folder.settled_state()
                if state is not None and state.state.is_over:
                    self._over[folder.id] = _as_status(folder, state)
                else:
                    _ = folder.job
                    yield folder, state, supervised
            except DataError as error:
                self._over[folder.id] = JobStatus(JobState.UNKNOWN, str(error))

    def _waits(self, folder: JobFolder, state: LocalState | None) -> bool:
        is_waiting = state is None or state.state in (JobState.PENDING, JobState.REQUEUED)
        return is_waiting and not folder.asked("cancel")

    def _judged(self, folder: JobFolder, state: LocalState | None, supervised: bool) -> JobStatus:
        status = _as_status(folder, state)
        if status.state.is_over:
            return status
        cancelled = folder.asked("cancel")
        if not supervised:
            if cancelled:
                return replace(status, state=JobState.CANCELLED, nodes=())
            if state is None:
                return replace(status, reason=_NOT_STARTED)
            return replace(status, state=JobState.FAILED, reason=_DEAD, nodes=())
        if status.state is JobState.RUNNING:
            return replace(status, reason="is being cancelled") if cancelled else status
        if cancelled:
            return replace(status, state=JobState.CANCELLED)
        if broken := self.broken_predecessor(folder):
            return replace(status, state=JobState.CANCELLED, reason=broken)
        return replace(status, reason="; ".join(filter(None, (status.reason, self._why_waiting(folder)))))

    def _why_waiting(self, folder: JobFolder) -> str:
        missing = [_name(job_id) for job_id in folder.job.after if self.status(job_id).state is not JobState.SUCCEEDED]
        return f"waits for {', '.join(missing)}" if missing else "waits for its turn"


def _name(job_id: str) -> str:
    return job_id.rpartition(".")[0]


def _place(folder: JobFolder, state: LocalState | None) -> int:
    return folder.job.place if state is None else state.place


def _as_status(folder: JobFolder, state: LocalState | None) -> JobStatus:
    if state is None:
        return JobStatus(JobState.PENDING, submitted=folder.job.submitted)
    return JobStatus(
        state.state,
        state.reason,
        restarts=state.restarts,
        nodes=(socket.gethostname(),) if state.state is JobState.RUNNING else (),
        submitted=folder.job.submitted,
        started=state.started,
        ended=state.ended,
    )
