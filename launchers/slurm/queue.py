"""The queue of a Slurm cluster."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from astroclip_dist.errors import ConfigError, StorageError
from launchers.jobs.places import SlurmPlace
from launchers.jobs.spec import JobSpec
from launchers.jobs.status import JobState, JobStatus
from launchers.jobs.task import Task
from launchers.slurm.commands import QueueEntry, RefusedError, queue_entries, record_entries, run
from launchers.slurm.following import lines_of
from launchers.slurm.refusals import nodes_away, refusal
from launchers.slurm.script import array_index, comment_of, log_path, script_of
from launchers.slurm.states import status_of

# What the submitting process hands on: to find programs, and the site's Slurm. All else comes from the job file.
_HANDED_ON = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SLURM_CONF")
_HELD = ("PENDING", "JobHeldUser")
_CANCEL_S = 10.0
_POLL_S = 0.3
_FOLLOW_S = 3.0
log = logging.getLogger(__name__)


class SlurmQueue:
    """``launchers.jobs.queue.JobQueue`` by Slurm's commands. A sweep is one array; its ids are J_0, J_1, ..."""

    depends = True

    def __init__(self, place: SlurmPlace) -> None:
        self._place = place

    def render(self, tasks: Sequence[Task], after: Sequence[str] = ()) -> str:
        """The script of the first attempt; of another one only the comment differs."""
        return script_of(tasks, self._place, 0, after)

    def check(self, tasks: Sequence[Task]) -> None:
        """``sbatch --test-only``, which starts nothing, and knows no node that is down or drained."""
        job = tasks[0].job
        environment = _environment(job)
        try:
            run(["sbatch", "--test-only"], script_of(tasks, self._place, 0, ()), environment)
        except RefusedError as error:
            if away := nodes_away(error, job):
                log.warning("%s waits for nodes that are down or drained: %s", job.name, ", ".join(away))
                return
            raise refusal(error, job, self._place) from error

    def submit(self, tasks: Sequence[Task], attempt: int, after: Sequence[str] = ()) -> tuple[str, ...]:
        job = tasks[0].job
        if adopted := self._submitted_before(tasks, attempt):
            return adopted
        script = script_of(tasks, self._place, attempt, after)
        environment = _environment(job)
        path = Path(self._place.folder) / job.name / f"attempt-{attempt}.sh"
        try:
            for folder in (path.parent, *(log_path(task, self._place, "").parent for task in tasks)):
                folder.mkdir(parents=True, exist_ok=True)
            path.write_text(script)
        except OSError as error:
            raise StorageError("launcher.folder", error, "Take a folder that you may write.") from error
        try:
            told = run(["sbatch", "--hold", "--parsable", str(path)], environment=environment)
        except RefusedError as error:
            raise refusal(error, job, self._place) from error
        # JOB, or JOB;CLUSTER
        return _ids(told.strip().partition(";")[0], tasks)

    def find(self, task_name: str, attempt: int) -> str | None:
        base, _, number = task_name.rpartition("-")
        found = [
            entry.job_id
            for entry in queue_entries("--me", f"--name={task_name},{base}")
            if _is_attempt(entry, attempt)
            and (
                (entry.name == task_name and "_" not in entry.job_id)
                or (entry.name == base and entry.job_id.endswith(f"_{number}"))
            )
        ]
        return max(found, key=_number, default=None)

    def release(self, ids: Sequence[str]) -> None:
        held = [entry.job_id for entry in self._entries(ids) if (entry.state, entry.reason) == _HELD]
        if held:
            try:
                run(["scontrol", "release", ",".join(held)])
            except RefusedError as error:
                raise StorageError("slurm", error, "The jobs are held: submit again to release them.") from error

    def statuses(self, ids: Sequence[str]) -> Mapping[str, JobStatus]:
        told = {entry.job_id: entry for entry in self._entries(ids)}
        if forgotten := [job_id for job_id in ids if job_id not in told]:
            told |= {entry.job_id: entry for entry in record_entries(forgotten)}
        return {job_id: status_of(told[job_id]) if job_id in told else JobStatus(JobState.UNKNOWN) for job_id in ids}

    def logs(self, job_id: str, follow: bool) -> Iterator[str]:
        """From the one file that all starts of a job append to."""
        return lines_of(
            lambda: next(Path(self._place.folder).glob(f"*/{job_id}.log"), None),
            (lambda: self._is_over(job_id)) if follow else None,
            _FOLLOW_S,
        )

    def cancel(self, job_id: str) -> None:
        if self._is_over(job_id):
            return
        try:
            run(["scancel", job_id])
        except RefusedError as error:
            if not self._is_over(job_id):
                raise ConfigError("name", job_id, f"Slurm does not cancel it: {error}") from error
        # Its processes get a while to end (KillWait of slurm.conf).
        deadline = time.monotonic() + _CANCEL_S
        while not self._is_over(job_id) and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def requeue(self, job_id: str) -> None:
        """Tell it what Slurm tells it near its time limit; the job then queues itself again."""
        state = self.statuses([job_id])[job_id].state
        if state is not JobState.RUNNING:
            raise ConfigError("name", job_id, f"It is {state}, and only a running job can be queued again.")
        try:
            run(["scancel", "--batch", "--signal=USR2", job_id])
        except RefusedError as error:
            raise ConfigError("name", job_id, f"Slurm does not pass on the signal: {error}") from error

    def _entries(self, ids: Sequence[str]) -> list[QueueEntry]:
        return queue_entries(f"--jobs={','.join(ids)}") if ids else []

    def _is_over(self, job_id: str) -> bool:
        state = self.statuses([job_id])[job_id].state
        return state.is_over or state is JobState.UNKNOWN

    def _submitted_before(self, tasks: Sequence[Task], attempt: int) -> tuple[str, ...] | None:
        """Ids of the same tasks' jobs that a submitter left behind who died."""
        name, comment = tasks[0].job.name, comment_of(tasks, attempt)
        left = [
            entry
            for entry in queue_entries("--me", f"--name={name}")
            if _is_attempt(entry, attempt) and not status_of(entry).state.is_over
        ]
        if not left:
            return None
        if any(entry.comment != comment for entry in left):
            raise ConfigError(
                "name",
                name,
                f"Another job of yours has that name in Slurm's queue ({left[0].job_id}): choose another name, or end "
                f"that one (scancel {left[0].job_id}).",
            )
        return _ids(left[0].job_id.partition("_")[0], tasks)


def _ids(job: str, tasks: Sequence[Task]) -> tuple[str, ...]:
    return tuple(job if (index := array_index(task)) is None else f"{job}_{index}" for task in tasks)


def _is_attempt(entry: QueueEntry, attempt: int) -> bool:
    return entry.comment.split()[:3] == ["astroclip", entry.name, str(attempt)]


def _number(job_id: str) -> int:
    return int(job_id.partition("_")[0])


def _environment(job: JobSpec) -> dict[str, str]:
    """All that the job gets from here.

    Raises:
        ConfigError: a secret is not set here.
    """
    missing = [name for name in job.secrets if name not in os.environ]
    if missing:
        raise ConfigError("secrets", ", ".join(missing), "Not set here: export them before you submit.")
    return {name: os.environ[name] for name in (*_HANDED_ON, *job.secrets) if name in os.environ}
