"""Hand jobs over, ask after them, end them: what the engines have in common, around their queues."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

from astroclip_dist.errors import ConfigError, UserError
from launchers.jobs.places import Place
from launchers.jobs.progress import RunProgress, read_progress
from launchers.jobs.queue import JobQueue, queue_at
from launchers.jobs.records import JobRecord, JobRecords
from launchers.jobs.status import JobState, JobStatus
from launchers.jobs.task import Task

# For minutes after its end, others may make an engine start a job again (scontrol requeue).
_SETTLED_AFTER_S = 3600.0


@dataclass(frozen=True)
class Submission:
    """What became of a task that was to be handed over.

    Attributes:
        is_new: False: the same job waits, runs or has succeeded already, and was left alone.
        unlike: limits of the job that is there which are other ones than those of the task.
        finished: it was handed over by a submit that was killed, and let start only now.
    """

    record: JobRecord
    is_new: bool
    unlike: tuple[str, ...] = ()
    finished: bool = False


@dataclass(frozen=True)
class Job:
    """A job that was submitted, and what its engine says of it.

    Attributes:
        known: False: the engine does not know it, does not answer, or was not asked; the status is what is remembered,
            or what the run folder tells.
    """

    record: JobRecord
    status: JobStatus
    known: bool = True

    def is_over_for(self, seconds: float) -> bool:
        """Whether it ended so long ago; where its engine does not tell when, whether it was submitted so long ago."""
        if not self.status.state.is_over:
            return False
        ended = datetime.fromisoformat(self.status.ended or self.record.submitted)
        return (datetime.now(UTC) - ended).total_seconds() >= seconds


class JobDesk:
    """The jobs of one user, at whatever engines.

    Args:
        records: where the names are kept.
        again: the arguments of ``astroclip jobs submit`` that would submit again what this desk submits.
    """

    def __init__(self, records: JobRecords, again: Sequence[str] = ()) -> None:
        self._records, self._again = records, tuple(again)

    def submit(self, tasks: Sequence[Task], after: Sequence[str] = (), pipeline: str | None = None) -> list[Submission]:
        """Hand over a job's task, or the tasks of its sweep, unless the same job is there already.

        A name whose job is over gets another attempt: a training goes on from its last checkpoint. Killed at any
        moment, the same call again finishes what was begun.

        Args:
            after: names of jobs at the same engine that must have succeeded.

        Raises:
            ConfigError: the engine refuses, another task has the name, or another process submits it now; then nothing
                was handed over.
            StorageError: the engine does not answer.
        """
        place = tasks[0].job.launcher
        queue = queue_at(place)
        with ExitStack() as held:
            for task in sorted(tasks, key=lambda task: task.name):
                held.enter_context(self._records.changing(task.name))
            read = [self._records.read(task.name) for task in tasks]
            there = {job.record.name: job for job in self._ask([record for record in read if record is not None])}
            done = {task.name: found for task in tasks if (found := _same(task, there.get(task.name))) is not None}
            new = [task for task in tasks if task.name not in done]
            if new:
                queue.check(new)
                waits_for = self._ids_to_wait_for(after, place, queue)
                attempt = max(_attempt(there.get(task.name)) for task in new)
                records = [_record(task, attempt, pipeline, self._again) for task in new]
                for record in records:
                    self._records.write(record)
                try:
                    ids = queue.submit(new, attempt, waits_for)
                except ConfigError:
                    for task in new:
                        before = there.get(task.name)
                        self._records.withdraw(task.name, None if before is None else before.record)
                    raise
                for record, job_id in zip(records, ids, strict=True):
                    taken = record.model_copy(update={"job_id": job_id})
                    self._records.write(taken)
                    done[record.name] = Submission(taken, is_new=True)
            return self._released([done[task.name] for task in tasks], queue)

    def jobs(self, names: Sequence[str] | None = None) -> list[Job]:
        """Jobs by their names, or those of their sweeps and pipelines; all, where no names are given. Each engine is
        asked once, all at the same time.

        Of all jobs, those that are settled are told from memory, and those whose engine does not answer are UNKNOWN,
        with the reason, unless they were over.

        Raises:
            ConfigError: no job of that name.
            StorageError: the engine of a job that was named, and is not settled, does not answer.
        """
        if names is None:
            records = self._records.all()
            asked = self._ask([record for record in records if not record.settled], patient=True)
            told = {job.record.name: job for job in asked}
            return [told.get(record.name) or Job(record, record.last, known=False) for record in records]
        meant = dict.fromkeys(one for name in names for one in self.names_of(name))
        return self._ask([self._record(name) for name in meant])

    def names_of(self, name: str) -> list[str]:
        """The job of a name, or all jobs of the sweep or the pipeline of that name.

        Raises:
            ConfigError: there is neither.
        """
        if self._records.read(name) is not None:
            return [name]
        records = self._records.all()
        if found := [record.name for record in records if name in (record.sweep, record.pipeline)]:
            return found
        known = {one for record in records for one in (record.name, record.sweep, record.pipeline) if one}
        close = difflib.get_close_matches(name, sorted(known), n=1)
        mend = f"Did you mean {close[0]!r}?" if close else "astroclip jobs list names those that are known."
        raise ConfigError("name", name, f"No job of that name was submitted from here ({self._records.folder}). {mend}")

    def logs(self, name: str, follow: bool) -> Iterator[str]:
        """Lines that a job has printed.

        Raises:
            ConfigError: no job of that name, or it was never handed over.
        """
        record, queue = self._open(name)
        return queue.logs(_id_of(record), follow)

    def cancel(self, name: str) -> Job:
        """End a job for good; one that is over stays as it is.

        Raises:
            ConfigError: no job of that name, or its engine does not know it and somebody else runs the run.
            StorageError: the engine does not answer.
        """
        with self._records.changing(name):
            record, queue = self._open(name)
            [job] = self._ask([record])
            if job.status.state.is_over:
                return job
            if job.known:
                queue.cancel(_id_of(record))
                [job] = self._ask([record])
                # Kubernetes deletes a job to end it, and may have forgotten it by now.
                if job.known or job.status.state.is_over:
                    return job
            elif job.status.state is JobState.RUNNING:
                raise ConfigError("name", name, f"{job.status.reason}: stop it there.")
            ended = JobStatus(JobState.CANCELLED, f"{job.status.reason}; cancelled", submitted=record.submitted)
            return Job(self._records.add(record, last=ended), ended, known=False)

    def requeue(self, name: str) -> Job:
        """Let a running job save, and queue it again.

        Raises:
            ConfigError: the job does not run, or its engine cannot do that.
            StorageError: the engine does not answer.
        """
        with self._records.changing(name):
            record, queue = self._open(name)
            [job] = self._ask([record])
            if job.status.state is not JobState.RUNNING:
                then = "submit it again" if job.status.state.is_over else "wait for it to run, or cancel it"
                raise ConfigError(
                    "name", name, f"It is {job.status.state}, and only what runs can be requeued: {then}."
                )
            queue.requeue(_id_of(record))
            return self._ask([record])[0]

    def _ask(self, records: Sequence[JobRecord], patient: bool = False) -> list[Job]:
        """What the engines say of jobs, in their order."""
        places = {record.place.model_dump_json(): record.place for record in records}

        def ask(place: Place) -> list[Job]:
            here = [record for record in records if record.place == place]
            try:
                return self._ask_one(queue_at(place), here)
            except UserError as error:
                if not patient and not all(record.settled for record in here):
                    raise
                return [_unheard(record, error) for record in here]

        with ThreadPoolExecutor(max(1, len(places))) as pool:
            jobs = {job.record.name: job for answer in pool.map(ask, places.values()) for job in answer}
        return [jobs[record.name] for record in records]

    def _ask_one(self, queue: JobQueue, records: Sequence[JobRecord]) -> list[Job]:
        records = [self._with_id(record, queue) for record in records]
        ids = [record.job_id for record in records if record.job_id is not None]
        told = queue.statuses(ids) if ids else {}
        heard = [told.get(record.job_id) if record.job_id is not None else None for record in records]
        lost = [record for record, status in zip(records, heard, strict=True) if _forgotten(record, status)]
        runs = read_progress([record.run for record in lost if record.run is not None])
        return [
            self._heard(record, status)
            if status is not None and status.state is not JobState.UNKNOWN
            else self._remembered(record, status, runs)
            for record, status in zip(records, heard, strict=True)
        ]

    def _heard(self, record: JobRecord, status: JobStatus) -> Job:
        """A job by what its engine says."""
        record = self._noted(record, status)
        if status.state is JobState.PENDING and not record.released and not self._records.changed_by(record.name):
            killed = "its submit did not come to its end: submit it again, or cancel it"
            return Job(
                record, dataclasses.replace(status, reason=f"{status.reason}; {killed}" if status.reason else killed)
            )
        return Job(record, status)

    def _noted(self, record: JobRecord, status: JobStatus) -> JobRecord:
        settled = Job(record, status).is_over_for(_SETTLED_AFTER_S)
        if (status, settled) == (record.last, record.settled):
            return record
        return self._records.add(record, last=status, settled=settled)

    def _remembered(self, record: JobRecord, status: JobStatus | None, runs: dict[str, RunProgress]) -> Job:
        """A job that its engine does not know: by what it was last heard to say, or by the run folder."""
        if record.last.state.is_over:
            return Job(self._noted(record, record.last), record.last, known=False)
        if record.job_id is None:
            by = self._records.changed_by(record.name)
            reason = f"process {by} submits it now" if by else f"was never handed over to {record.place.name}"
            return Job(record, JobStatus(JobState.UNKNOWN, reason, submitted=record.submitted), known=False)
        reason = f"{record.place.name} does not know job {record.job_id} any more"
        if status is not None and status.reason:
            reason = status.reason
        run = runs.get(record.run) if record.run is not None else None
        if run is not None and run.finished:
            status = dataclasses.replace(record.last, state=JobState.SUCCEEDED, reason=f"the run is finished; {reason}")
            return Job(self._records.add(record, last=status), status, known=False)
        if run is not None and run.alive:
            status = dataclasses.replace(record.last, state=JobState.RUNNING, reason=f"{reason}; held by {run.held_by}")
            return Job(record, status, known=False)
        told = [f"last heard: {record.last.state}"]
        if run is not None and (of_run := run.trouble or run.last_event):
            told.append(f"the run: {of_run}")
        status = dataclasses.replace(record.last, state=JobState.UNKNOWN, reason="; ".join([reason, *told]))
        return Job(record, status, known=False)

    def _released(self, submissions: Sequence[Submission], queue: JobQueue) -> list[Submission]:
        """Let those start that no process has let start yet: this one's, and those of one that was killed."""
        held = [one.record for one in submissions if not one.record.released and not one.record.last.state.is_over]
        if held:
            queue.release([_id_of(record) for record in held])
        free = {record.name: self._records.add(record, released=True) for record in held}
        return [
            dataclasses.replace(one, record=record, finished=not one.is_new)
            if (record := free.get(one.record.name)) is not None
            else one
            for one in submissions
        ]

    def _ids_to_wait_for(self, names: Sequence[str], place: Place, queue: JobQueue) -> list[str]:
        """Of those that have not succeeded yet: an engine may have forgotten one that has."""
        ids = []
        for job in self.jobs(names) if names else ():
            if job.status.state is JobState.SUCCEEDED:
                continue
            if not queue.depends:
                mend = f"{place.name} cannot start a job after others: submit it when that has succeeded."
                raise ConfigError("after", job.record.name, mend)
            if job.record.place.name != place.name:
                raise ConfigError(
                    "after", job.record.name, f"It is not at {place.name}, which knows its own jobs only."
                )
            if job.status.state.is_over or job.status.state is JobState.UNKNOWN:
                mend = f"It is {job.status.state}, and has to succeed first: submit it again."
                raise ConfigError("after", job.record.name, mend)
            ids.append(_id_of(job.record))
        return ids

    def _open(self, name: str) -> tuple[JobRecord, JobQueue]:
        record = self._record(name)
        queue = queue_at(record.place)
        return self._with_id(record, queue), queue

    def _with_id(self, record: JobRecord, queue: JobQueue) -> JobRecord:
        """Find the job of a process that died before it could write down the id."""
        if record.job_id is None and (found := queue.find(record.name, record.attempt)) is not None:
            return self._records.add(record, job_id=found)
        return record

    def _record(self, name: str) -> JobRecord:
        record = self._records.read(name)
        if record is None:
            mend = f"That is several jobs: choose one of {', '.join(self.names_of(name))}."
            raise ConfigError("name", name, mend)
        return record


def _same(task: Task, job: Job | None) -> Submission | None:
    """The job that is there for a task already.

    Raises:
        ConfigError: it is another task's, and not over.
    """
    if job is None or job.record.job_id is None:
        return None
    record, state = job.record, job.status.state
    is_there = not state.is_over and state is not JobState.UNKNOWN
    if is_there and record.digest != task.digest:
        raise ConfigError(
            "name",
            task.name,
            f"Another job of that name is {state}: cancel it (astroclip jobs cancel {task.name}), or choose another "
            "name.",
        )
    if record.digest != task.digest or not (is_there or state is JobState.SUCCEEDED):
        return None
    limits = task.limits if is_there else record.limits
    return Submission(record, False, tuple(key for key in limits if limits[key] != record.limits.get(key)))


def _attempt(job: Job | None) -> int:
    """The number of the next attempt at a name; one that never reached its engine is made again."""
    if job is None:
        return 0
    return job.record.attempt + (job.record.job_id is not None)


def _record(task: Task, attempt: int, pipeline: str | None, again: tuple[str, ...]) -> JobRecord:
    return JobRecord(
        name=task.name,
        digest=task.digest,
        attempt=attempt,
        place=task.job.launcher,
        submitted=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        again=again,
        limits=task.limits,
        run=task.run,
        sweep=task.sweep,
        pipeline=pipeline,
    )


def _forgotten(record: JobRecord, status: JobStatus | None) -> bool:
    known = status is not None and status.state is not JobState.UNKNOWN
    return record.job_id is not None and not known and not record.last.state.is_over


def _unheard(record: JobRecord, error: UserError) -> Job:
    if record.last.state.is_over:
        return Job(record, record.last, known=False)
    reason = f"{record.place.name} does not answer ({error}); last heard: {record.last.state}"
    return Job(record, JobStatus(JobState.UNKNOWN, reason, submitted=record.submitted), known=False)


def _id_of(record: JobRecord) -> str:
    if record.job_id is None:
        raise ConfigError("name", record.name, "It was never handed over to its engine: submit it again.")
    return record.job_id
