"""Jobs in a Kubernetes cluster with KubeRay and Kueue: one RayJob a task, which has the task's name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import yaml

from astroclip_dist.errors import ConfigError
from launchers.jobs.places import KubernetesPlace
from launchers.jobs.status import JobState, JobStatus
from launchers.jobs.task import Task
from launchers.kubernetes.cluster import Cluster, ExistsError, MissingError, Object
from launchers.kubernetes.manifest import ATTEMPT_LABEL, DIGEST_ANNOTATION, Manifest, ray_job
from launchers.kubernetes.refusals import place_of
from launchers.kubernetes.status import is_active, is_admitted, is_over, status_of

_POLL_S = 2.0
# Of controllers that have nothing to wait for but each other.
_CONTROLLERS_S = 120.0
# As KubeRay names the cluster of a pod, and the Job whose pod submits.
_CLUSTER_LABEL, _SUBMITTER_LABEL = "ray.io/cluster", "job-name"


class KubernetesQueue:
    """A namespace in which Kueue has a LocalQueue. Ids are the names of RayJobs."""

    depends = False

    def __init__(self, place: KubernetesPlace) -> None:
        self._place = place
        self._connected: Cluster | None = None

    @property
    def _cluster(self) -> Cluster:
        # Not needed, nor perhaps there, where a job is only shown.
        if self._connected is None:
            self._connected = Cluster(self._place)
        return self._connected

    def render(self, tasks: Sequence[Task], after: Sequence[str] = ()) -> str:
        """The manifests, as ``kubectl apply -f -`` takes them."""
        _nothing_after(after)
        return yaml.safe_dump_all((ray_job(task) for task in tasks), sort_keys=False, width=120)

    def check(self, tasks: Sequence[Task]) -> None:
        """Let the API server, with KubeRay's and Kueue's webhooks, go through the RayJobs, and look for what they name.

        Raises:
            ConfigError: what is refused or missing, and the mend.
        """
        manifests = [ray_job(task) for task in tasks]
        self._named_things_are_there(tasks[0])
        for manifest in manifests:
            try:
                self._cluster.create_job(manifest, dry_run=True)
            except ExistsError:
                # Of an attempt that is over; submitting replaces it.
                continue

    def submit(self, tasks: Sequence[Task], attempt: int, after: Sequence[str] = ()) -> tuple[str, ...]:
        """Create the RayJobs; Kueue holds them back until there is room."""
        _nothing_after(after)
        created: list[str] = []
        try:
            for manifest in [ray_job(task, attempt) for task in tasks]:
                if self._create(manifest):
                    created.append(manifest["metadata"]["name"])
        except BaseException:
            for name in created:
                self._cluster.delete_job(name)
            raise
        return tuple(task.name for task in tasks)

    def find(self, task_name: str, attempt: int) -> str | None:
        """The RayJob of a name, if it is of that attempt."""
        job = self._cluster.job(task_name)
        return task_name if job is not None and _label(job, ATTEMPT_LABEL) == str(attempt) else None

    def release(self, ids: Sequence[str]) -> None:
        """Nothing: Kueue alone starts jobs."""

    def statuses(self, ids: Sequence[str]) -> Mapping[str, JobStatus]:
        """From two lists of the namespace, and one of the pods of those that run."""
        jobs = {job["metadata"]["name"]: job for job in self._cluster.jobs()}
        known = {name: jobs[name] for name in ids if name in jobs}
        workloads = self._workloads() if known else {}
        pods = self._pods([job for job in known.values() if is_admitted(workloads.get(_uid(job)))])
        found = {
            name: status_of(job, workloads.get(_uid(job)), pods.get(_cluster_of(job), ()))
            for name, job in known.items()
        }
        return {name: found.get(name, JobStatus(JobState.UNKNOWN)) for name in ids}

    def logs(self, job_id: str, follow: bool) -> Iterator[str]:
        """Lines of the pod that submits, which repeats what the command prints; that of the last start is kept."""
        last: dict[str, str] = {}
        read: set[str] = set()
        while True:
            job = self._cluster.job(job_id)
            over = job is None or is_over(job)
            for pod in self._submitters(job_id):
                name, phase = pod["metadata"]["name"], pod.get("status", {}).get("phase")
                if name in read or phase == "Pending":
                    continue
                try:
                    for when, line in self._cluster.log(name, follow, after=last.get(name, "")):
                        last[name] = when
                        yield line
                except MissingError:
                    phase = "Gone"
                if phase != "Running":
                    read.add(name)
            if over or not follow:
                return
            time.sleep(_POLL_S)

    def cancel(self, job_id: str) -> None:
        """Delete the RayJob: KubeRay stops its command, which saves, and the pods leave; Kueue frees the quota."""
        job = self._cluster.job(job_id)
        if job is not None and not is_over(job):
            self._cluster.delete_job(job_id)

    def requeue(self, job_id: str) -> None:
        """Deactivate the Workload, which takes the machines back as a preemption does, and activate it again.

        Raises:
            ConfigError: the job neither runs nor is deactivated.
        """
        job, workload = self._job_and_workload(job_id)
        if job is None or is_over(job) or workload is None or (is_active(workload) and not is_admitted(workload)):
            raise ConfigError("name", job_id, "It does not run: there is nothing to stop.")
        name = workload["metadata"]["name"]
        if is_active(workload):
            self._cluster.activate(name, active=False)
            self._wait(job_id, lambda: not is_admitted(self._job_and_workload(job_id)[1]), "Kueue takes it back")
        self._cluster.activate(name, active=True)

    def _named_things_are_there(self, task: Task) -> None:
        place, job = place_of(task), task.job
        if job.queue not in (queues := self._cluster.local_queues()):
            mend = f"Namespace {place.namespace} has {', '.join(sorted(queues)) or 'none'}."
            raise ConfigError("queue", job.queue, f"There is no such LocalQueue. {mend}")
        # Kueue takes a job whose class is missing, and never starts it.
        if job.priority is not None and job.priority not in (classes := self._cluster.priority_classes()):
            mend = f"The cluster has {', '.join(sorted(classes)) or 'none'}."
            raise ConfigError("priority", job.priority, f"There is no such WorkloadPriorityClass. {mend}")
        for field, plural, name in (
            ("launcher.secret", "secrets", place.secret),
            ("launcher.pull_secret", "secrets", place.pull_secret),
            ("launcher.service_account", "serviceaccounts", place.service_account),
            ("launcher.volume.name", "persistentvolumeclaims", place.volume.name if place.volume else None),
        ):
            if name is not None and self._cluster.lacks(plural, name):
                raise ConfigError(field, name, f"Namespace {place.namespace} has none of that name among its {plural}.")

    def _create(self, manifest: Manifest) -> bool:
        """Whether the job is new; the same of the same attempt stays, one that is over is replaced."""
        name = manifest["metadata"]["name"]
        try:
            self._cluster.create_job(manifest)
            return True
        except ExistsError:
            there = self._cluster.job(name)
        if there is not None:
            if _identity(there) == _identity(manifest) and "deletionTimestamp" not in there["metadata"]:
                return False
            if not is_over(there) and "deletionTimestamp" not in there["metadata"]:
                mend = "Another job of that name is in the namespace: choose another name, or cancel it."
                raise ConfigError("name", name, mend)
            self._cluster.delete_job(name)
            self._wait(name, lambda: self._cluster.job(name) is None, "the former job of that name leaves")
        # By now somebody else may have taken the name.
        return self._create(manifest)

    def _job_and_workload(self, name: str) -> tuple[Object | None, Object | None]:
        job = self._cluster.job(name)
        return job, self._workloads().get(_uid(job)) if job is not None else None

    def _workloads(self) -> dict[str, Object]:
        """By the id of the RayJob that owns it."""
        return {
            owner["uid"]: workload
            for workload in self._cluster.workloads()
            for owner in workload["metadata"].get("ownerReferences", ())
        }

    def _pods(self, jobs: Sequence[Object]) -> dict[str, list[Object]]:
        """By the name of their Ray cluster."""
        clusters = [name for job in jobs if (name := _cluster_of(job))]
        found: dict[str, list[Object]] = {}
        for pod in self._cluster.pods(f"{_CLUSTER_LABEL} in ({','.join(clusters)})") if clusters else ():
            found.setdefault(pod["metadata"]["labels"][_CLUSTER_LABEL], []).append(pod)
        return found

    def _submitters(self, name: str) -> list[Object]:
        pods = self._cluster.pods(f"{_SUBMITTER_LABEL}={name}")
        return sorted(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def _wait(self, name: str, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _CONTROLLERS_S
        while not done():
            if time.monotonic() > deadline:
                raise ConfigError("name", name, f"Waited {_CONTROLLERS_S:.0f} s until {what}: try again later.")
            time.sleep(_POLL_S)


def _nothing_after(after: Sequence[str]) -> None:
    if after:
        raise ConfigError(
            "after", ", ".join(after), "Kueue knows no order of jobs: a pipeline hands them over one by one."
        )


def _identity(job: Object) -> tuple[str | None, str | None]:
    return job["metadata"].get("annotations", {}).get(DIGEST_ANNOTATION), _label(job, ATTEMPT_LABEL)


def _label(job: Object, label: str) -> str | None:
    return job["metadata"].get("labels", {}).get(label)


def _uid(job: Object) -> str:
    return job["metadata"]["uid"]


def _cluster_of(job: Object) -> str:
    return (job.get("status") or {}).get("rayClusterName", "")
