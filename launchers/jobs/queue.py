"""The adapter to one engine that queues jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from launchers.jobs.places import Place
from launchers.jobs.status import JobStatus
from launchers.jobs.task import Task


class JobQueue(Protocol):
    """One engine at one place. Ids are the engine's own, as its other tools take them.

    Every method may raise StorageError where the engine does not answer, and ConfigError where it refuses who asks.
    """

    depends: bool
    """Whether the engine itself starts a job after others have succeeded."""

    def render(self, tasks: Sequence[Task], after: Sequence[str] = ()) -> str:
        """Exactly what ``submit`` hands to the engine: script, manifest or request. It names secrets, never holds them.

        Args:
            tasks: one, or all of a sweep.
            after: ids of jobs that must have succeeded.

        Raises:
            ConfigError: the engine cannot do what the job asks for; the field, the value, the mend.
        """

    def check(self, tasks: Sequence[Task]) -> None:
        """Ask the engine whether it would take the tasks, without handing them over.

        Raises:
            ConfigError: unknown queue, more than there is, ...
        """

    def submit(self, tasks: Sequence[Task], attempt: int, after: Sequence[str] = ()) -> tuple[str, ...]:
        """Hand tasks over, so that none of them starts before ``release`` where the engine can hold a job back.

        Of the same task and attempt there is one job, however often this is called.

        Args:
            attempt: counts from 0 how often the name was submitted after its job was over.

        Returns:
            The id of each task.

        Raises:
            ConfigError: the engine refuses; then it has none of them.
        """

    def find(self, task_name: str, attempt: int) -> str | None:
        """The id that ``submit`` gave to a task, also where the submitting process died before it could say so."""

    def release(self, ids: Sequence[str]) -> None:
        """Let held jobs start; does nothing to others."""

    def statuses(self, ids: Sequence[str]) -> Mapping[str, JobStatus]:
        """What the engine knows of each job, asked for at once. One that it does not know is UNKNOWN, or left out."""

    def logs(self, job_id: str, follow: bool) -> Iterator[str]:
        """Lines of what the job has printed, over all its starts as far as the engine keeps them.

        Args:
            follow: go on until the job is over.
        """

    def cancel(self, job_id: str) -> None:
        """End a job for good, waiting or running, and return when the engine has taken note. One that is over stays as
        it is."""

    def requeue(self, job_id: str) -> None:
        """Stop a running job so that it saves, and queue it again under the same id.

        Raises:
            ConfigError: the engine cannot, or the job does not run.
        """


def queue_at(place: Place) -> JobQueue:
    """The adapter to a place; each is imported when it is chosen."""
    match place.name:
        case "local":
            from launchers.local.queue import LocalQueue

            return LocalQueue(place)
        case "ray":
            from launchers.ray.queue import RayQueue

            return RayQueue(place)
        case "slurm":
            from launchers.slurm.queue import SlurmQueue

            return SlurmQueue(place)
        case "kubernetes":
            from launchers.kubernetes.queue import KubernetesQueue

            return KubernetesQueue(place)
