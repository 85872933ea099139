"""The queue of this machine: one job after the other, by priority and then in the order of submission."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import psutil
import yaml

from astroclip_dist.errors import ConfigError
from astroclip_dist.machine_limits import memory_limit, usable_cores
from launchers.jobs.places import LocalPlace
from launchers.jobs.records import JobRecords
from launchers.jobs.status import JobState, JobStatus
from launchers.jobs.task import Task
from launchers.local.job_folder import JobFolder, LocalJob, Priority
from launchers.local.waiting import LocalJobs

_POLL_S = 0.2
# A launcher gives its workers this long beyond the deadline of their save, and needs a moment itself.
_LEAVE_MARGIN_S = 25.0
# A command that is no training has nothing to save.
_GRACE_OF_COMMANDS_S = 20.0
# Each has a process that waits for its turn, of some 10 MB.
_MOST_AT_ONCE = 200


class LocalQueue:
    """Jobs of this machine. Ids are ``NAME.ATTEMPT``, the names of folders in ``local`` beside the jobs' records."""

    depends = True

    def __init__(self, place: LocalPlace) -> None:
        self._folder = (JobRecords().folder / "local").resolve()

    def render(self, tasks: Sequence[Task], after: Sequence[str] = ()) -> str:
        """The job files, as YAML."""
        texts = []
        for task in tasks:
            job = self._job(task, after, place=0)
            values = {"name": job.name, "command": shlex.join(["astroclip", *job.arguments]), **asdict(job)}
            values |= {"after": list(job.after), "secrets": list(job.secrets), "priority": job.priority.name.lower()}
            # The first says the same as ``command``; the others are known when it is submitted.
            for key in ("arguments", "place", "submitted"):
                del values[key]
            texts.append(yaml.dump(values, Dumper=_BlockDumper, sort_keys=False, width=120))
        return "---\n".join(texts)

    def check(self, tasks: Sequence[Task]) -> None:
        """Raises ConfigError where this machine has less than a job asks for."""
        if len(tasks) > _MOST_AT_ONCE:
            raise ConfigError("sweep", f"{len(tasks)} runs", f"This machine takes {_MOST_AT_ONCE} at once: divide it.")
        for task in tasks:
            _refuse_what_is_not_here(task)

    def submit(self, tasks: Sequence[Task], attempt: int, after: Sequence[str] = ()) -> tuple[str, ...]:
        jobs = LocalJobs(self._folder)
        for job_id in after:
            if jobs.folder_of(job_id) is None:
                raise ConfigError("after", job_id, f"There is no such job in {self._folder}.")
        place = jobs.last_place()
        folders = [JobFolder(self._folder / f"{task.name}.{attempt}") for task in tasks]
        for number, (task, folder) in enumerate(zip(tasks, folders, strict=True), start=1):
            if not folder.exists:
                folder.create(self._job(task, after, place + number))
        return tuple(folder.id for folder in folders)

    def find(self, task_name: str, attempt: int) -> str | None:
        folder = JobFolder(self._folder / f"{task_name}.{attempt}")
        return folder.id if folder.exists else None

    def release(self, ids: Sequence[str]) -> None:
        for job_id in ids:
            folder = JobFolder(self._folder / job_id)
            if folder.exists:
                folder.start_supervisor()

    def statuses(self, ids: Sequence[str]) -> Mapping[str, JobStatus]:
        jobs = LocalJobs(self._folder)
        return {job_id: jobs.status(job_id) for job_id in ids}

    def logs(self, job_id: str, follow: bool) -> Iterator[str]:
        folder = self._existing(job_id)
        rest = b""
        with folder.log.open("rb") as log:
            while True:
                # Asked before reading: what is printed last is read, too.
                last = not follow or not folder.settled_state()[1]
                *lines, rest = (rest + log.read()).split(b"\n")
                for line in lines:
                    yield line.decode(errors="replace")
                if last:
                    break
                time.sleep(_POLL_S)
        if rest:
            yield rest.decode(errors="replace")

    def cancel(self, job_id: str) -> None:
        folder = self._existing(job_id)
        if not LocalJobs(self._folder).status(job_id).state.is_over:
            folder.ask("cancel")

    def requeue(self, job_id: str) -> None:
        folder = self._existing(job_id)
        status = LocalJobs(self._folder).status(job_id)
        if status.state is not JobState.RUNNING:
            raise ConfigError("job", job_id, f"It is {status.state}: only a running job can be queued again.")
        if status.restarts >= folder.job.max_restarts:
            mend = "It was started again so often: cancel it, and submit it again."
            raise ConfigError("max_restarts", folder.job.max_restarts, mend)
        folder.ask("requeue")

    def _existing(self, job_id: str) -> JobFolder:
        folder = LocalJobs(self._folder).folder_of(job_id)
        if folder is None:
            raise ConfigError("job", job_id, f"There is no such job in {self._folder}.")
        return folder

    def _job(self, task: Task, after: Sequence[str], place: int) -> LocalJob:
        spec = task.job
        grace = (
            _GRACE_OF_COMMANDS_S if task.config is None else task.config.health.preemption_deadline + _LEAVE_MARGIN_S
        )
        return LocalJob(
            name=task.name,
            arguments=task.arguments,
            environment=task.environment,
            secrets=spec.secrets,
            directory=str(Path.cwd()),
            after=tuple(after),
            priority=_priority(spec.priority),
            place=place,
            time_limit=spec.time_limit,
            max_restarts=spec.max_restarts,
            grace=grace,
            submitted=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )


def _priority(name: str | None) -> Priority:
    try:
        return Priority[(name or "normal").upper()]
    except KeyError:
        raise ConfigError("priority", name, "On this machine it is low, normal or high.") from None


def _refuse_what_is_not_here(task: Task) -> None:
    spec = task.job
    _priority(spec.priority)
    if spec.nodes > 1:
        raise ConfigError("nodes", spec.nodes, "This machine is one; choose another launcher for more.")
    if spec.queue is not None:
        raise ConfigError("queue", spec.queue, "This machine has one queue: leave it out.")
    if spec.image is not None:
        raise ConfigError("image", spec.image, "Jobs of this machine run with its own Python: leave it out.")
    total = psutil.virtual_memory().total
    for field, wanted, here in (
        ("gpus_per_node", spec.gpus_per_node, _gpus()),
        ("cpus_per_node", spec.cpus_per_node, usable_cores()),
        ("memory_per_node", spec.memory_per_node, min(memory_limit() or total, total)),
    ):
        if wanted is not None and wanted > here:
            raise ConfigError(field, wanted, f"A job that is submitted here may use {here:,}.")
    for variable in spec.secrets:
        if variable not in os.environ:
            raise ConfigError("secrets", variable, f"It is not set here: export {variable} before you submit.")


def _gpus() -> int:
    """NVIDIA GPUs that a process started here may use."""
    # torch would take seconds to say it.
    import pynvml

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return count if visible is None else min(count, len([part for part in visible.split(",") if part.strip()]))


class _BlockDumper(yaml.SafeDumper):
    """Texts of several lines, as the configuration, as they are."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_BlockDumper.add_representer(str, _represent_text)
