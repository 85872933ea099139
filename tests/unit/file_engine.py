"""An engine of the tests' own, for what the desk does around a queue: jobs as lines of a file, told what to do next."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from astroclip_dist.errors import ConfigError, StorageError
from launchers.jobs.status import JobState, JobStatus
from launchers.jobs.task import Task


class FileEngine:
    """An engine whose jobs are lines of a file, so that they outlive whoever submits.

    Attributes:
        away: does not answer.
        asked: ids of jobs whose status was asked for, in their order.
        refuses: takes no job.
    """

    depends = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.away = self.refuses = False
        self.asked: list[str] = []

    @contextmanager
    def jobs(self) -> Iterator[dict[str, dict[str, Any]]]:
        """Jobs by id, to be changed."""
        if self.away:
            raise StorageError("engine", "no answer", "Wait.")
        with self.path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            jobs = json.loads(file.read() or "{}")
            yield jobs
            aside = json.dumps(jobs)
            file.truncate(0)
            file.write(aside)

    def render(self, tasks: Sequence[Task], after: Sequence[str] = ()) -> str:
        return "\n".join(task.name for task in tasks)

    def check(self, tasks: Sequence[Task]) -> None:
        """All are fine."""

    def submit(self, tasks: Sequence[Task], attempt: int, after: Sequence[str] = ()) -> tuple[str, ...]:
        if self.refuses:
            raise ConfigError("queue", "none", "There is no such queue.")
        ids = tuple(f"{task.name}.{attempt}" for task in tasks)
        with self.jobs() as jobs:
            for job_id in ids:
                jobs.setdefault(job_id, {"state": "pending", "held": True, "after": list(after), "submitted": 0})
                jobs[job_id]["submitted"] += 1
        return ids

    def find(self, task_name: str, attempt: int) -> str | None:
        with self.jobs() as jobs:
            return f"{task_name}.{attempt}" if f"{task_name}.{attempt}" in jobs else None

    def release(self, ids: Sequence[str]) -> None:
        with self.jobs() as jobs:
            for job_id in ids:
                if jobs[job_id]["held"]:
                    jobs[job_id] |= {"held": False, "state": "running"}

    def statuses(self, ids: Sequence[str]) -> Mapping[str, JobStatus]:
        self.asked += ids
        with self.jobs() as jobs:
            here = [job_id for job_id in ids if job_id in jobs]
            return {one: JobStatus(JobState(jobs[one]["state"]), ended=jobs[one].get("ended")) for one in here}

    def logs(self, job_id: str, follow: bool) -> Iterator[str]:
        yield job_id

    def cancel(self, job_id: str) -> None:
        with self.jobs() as jobs:
            if not JobState(jobs[job_id]["state"]).is_over:
                jobs[job_id]["state"] = "cancelled"

    def requeue(self, job_id: str) -> None:
        with self.jobs() as jobs:
            jobs[job_id]["state"] = "requeued"

    def state(self) -> dict[str, str]:
        """``held`` included."""
        with self.jobs() as jobs:
            return {job_id: "held" if job["state"] == "pending" else job["state"] for job_id, job in jobs.items()}

    def becomes(self, job_id: str, state: str | None, ended: datetime | None = None) -> None:
        """None: it is forgotten."""
        with self.jobs() as jobs:
            if state is None:
                del jobs[job_id]
            else:
                jobs[job_id] |= {"state": state, "ended": None if ended is None else ended.isoformat()}


class Hooked:
    """Another object whose methods call a hook before and after they do their work."""

    def __init__(self, inner: Any, hook: Callable[[str], None]) -> None:
        self._inner, self._hook = inner, hook

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return partial(self._call, name, found) if callable(found) else found

    def _call(self, name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._hook(f"before {name}")
        result = method(*args, **kwargs)
        self._hook(f"after {name}")
        return result
