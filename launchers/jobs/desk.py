"""Hand jobs over, ask after them, end them: what the engines have in common, around their queues."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

from astroclip_dist.errors import ConfigError
from launchers.jobs.queue import JobQueue, queue_at
from launchers.jobs.records import JobRecord, JobRecords
from launchers.jobs.status import JobState, JobStatus
from launchers.jobs.task import Task


@dataclass(frozen=True)
class Submission:
    """What became of a task that was to be handed over.

    Attributes:
        is_new: False: the same job waits, runs or has succeeded already, and was left alone.
    """

    record: JobRecord
    is_new: bool


@dataclass(frozen=True)
class Job:
    """A job that was submitted, and what its engine says of it."""

    record: JobRecord
    status: JobStatus


class JobDesk:
    """The jobs of one user, at whatever engines.

    Args:
        records: where the names are kept.
    """

    def __init__(self, records: JobRecords) -> None:
        self._records = records

    def submit(self, tasks: Sequence[Task], after: Sequence[str] = (), pipeline: str | None = None) -> list[Submission]:
        """Hand over a job's task, or the tasks of its sweep, unless the same job is there already.

        A name whose job is over gets another attempt: a training goes on from its last checkpoint.

        Args:
            after: names of jobs at the same engine that must have succeeded.

        Raises:
            ConfigError: the engine refuses, another task has the name, or another process submits it now.
            StorageError: the engine does not answer.
        """
        queue = queue_at(tasks[0].job.launcher)
        with ExitStack() as held:
            for task in sorted(tasks, key=lambda task: task.name):
                held.enter_context(self._records.changing(task.name))
            known = {task.name: self._known(task, queue, pipeline) for task in tasks}
            new = [task for task in tasks if known[task.name].is_new]
            if new:
                queue.check(new)
                self._hand_over(new, known, queue, [self._id_of(name) for name in after])
            # A process that was killed before it could may have handed these over.
            queue.release([job_id for one in known.values() if not one.is_new and (job_id := one.record.job_id)])
            return [known[task.name] for task in tasks]

    def jobs(self, names: Sequence[str] | None = None) -> list[Job]:
        """Jobs by name; all, where no names are given. Each engine is asked once.

        Raises:
            ConfigError: no job of that name.
            StorageError: an engine does not answer.
        """
        records = [self._record(name) for name in (self._records.names() if names is None else names)]
        statuses: dict[str, JobStatus] = {}
        for place in {record.place.model_dump_json(): record.place for record in records}.values():
            queue = queue_at(place)
            here = [self._with_id(record, queue) for record in records if record.place == place]
            ids = [record.job_id for record in here if record.job_id is not None]
            told = queue.statuses(ids) if ids else {}
            for record in here:
                status = told.get(record.job_id) if record.job_id else None
                statuses[record.name] = self._remembered(record, status)
        return [Job(self._record(record.name), statuses[record.name]) for record in records]

    def logs(self, name: str, follow: bool) -> Iterator[str]:
        """Lines that a job has printed.

        Raises:
            ConfigError: no job of that name, or it was never handed over.
        """
        record, queue = self._open(name)
        return queue.logs(self._id_of(record.name), follow)

    def cancel(self, name: str) -> Job:
        """End a job for good; one that is over stays as it is."""
        with self._records.changing(name):
            record, queue = self._open(name)
            if record.job_id is not None:
                queue.cancel(record.job_id)
            else:
                self._records.write(record.model_copy(update={"last_state": JobState.CANCELLED}))
        return self.jobs([name])[0]

    def requeue(self, name: str) -> Job:
        """Let a running job save, and queue it again.

        Raises:
            ConfigError: the job does not run, or its engine cannot do that.
        """
        with self._records.changing(name):
            record, queue = self._open(name)
            queue.requeue(self._id_of(record.name))
        return self.jobs([name])[0]

    def _known(self, task: Task, queue: JobQueue, pipeline: str | None) -> Submission:
        """The job of a task's name as it is, or the record of a new attempt."""
        new = JobRecord(
            name=task.name,
            digest=task.digest,
            place=task.job.launcher,
            submitted=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            run=task.run,
            pipeline=pipeline,
        )
        record = self._records.read(task.name)
        if record is None:
            return Submission(new, is_new=True)
        [job] = self.jobs([task.name])
        record = job.record
        if record.job_id is None and not job.status.state.is_over:
            # The process that was to hand it over did not come to it.
            return Submission(new.model_copy(update={"attempt": record.attempt}), is_new=True)
        if job.status.state.is_over or job.status.state is JobState.UNKNOWN:
            if job.status.state is JobState.SUCCEEDED and record.digest == task.digest:
                return Submission(record, is_new=False)
            return Submission(new.model_copy(update={"attempt": record.attempt + 1}), is_new=True)
        if record.digest != task.digest:
            raise ConfigError(
                "name",
                task.name,
                f"Another job of that name is {job.status.state}: cancel it (astroclip jobs cancel {task.name}), "
                "or choose another name.",
            )
        return Submission(record, is_new=False)

    def _hand_over(
        self, tasks: Sequence[Task], known: dict[str, Submission], queue: JobQueue, after: Sequence[str]
    ) -> None:
        for task in tasks:
            self._records.write(known[task.name].record)
        ids: list[str] = []
        # The points of a sweep have one attempt in common only where none was submitted alone.
        for attempt in sorted({known[task.name].record.attempt for task in tasks}):
            alike = [task for task in tasks if known[task.name].record.attempt == attempt]
            for task, job_id in zip(alike, queue.submit(alike, attempt, after), strict=True):
                record = known[task.name].record.model_copy(update={"job_id": job_id})
                self._records.write(record)
                known[task.name] = Submission(record, is_new=True)
                ids.append(job_id)
        queue.release(ids)

    def _remembered(self, record: JobRecord, status: JobStatus | None) -> JobStatus:
        """What the engine said last counts where it does not know the job any more."""
        if status is None or status.state is JobState.UNKNOWN:
            if record.last_state.is_over:
                return JobStatus(record.last_state, record.last_reason, submitted=record.submitted)
            why = "was never handed over: submit it again" if record.job_id is None else "the engine does not know it"
            return JobStatus(JobState.UNKNOWN, why, submitted=record.submitted)
        if status.state != record.last_state or status.reason != record.last_reason:
            self._records.write(
                self._record(record.name).model_copy(update={"last_state": status.state, "last_reason": status.reason})
            )
        return status

    def _open(self, name: str) -> tuple[JobRecord, JobQueue]:
        record = self._record(name)
        queue = queue_at(record.place)
        return self._with_id(record, queue), queue

    def _with_id(self, record: JobRecord, queue: JobQueue) -> JobRecord:
        """Find the job of a process that died before it could write down the id."""
        if record.job_id is None and (found := queue.find(record.name, record.attempt)) is not None:
            record = record.model_copy(update={"job_id": found})
            self._records.write(record)
        return record

    def _record(self, name: str) -> JobRecord:
        record = self._records.read(name)
        if record is None:
            raise ConfigError("name", name, f"No job of that name was submitted from here ({self._records.folder}).")
        return record

    def _id_of(self, name: str) -> str:
        record = self._record(name)
        if record.job_id is None:
            raise ConfigError("name", name, "It was never handed over to its engine: submit it again.")
        return record.job_id
