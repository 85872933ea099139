"""What KubeRay and Kueue say of a job, in the words that all engines share.

KubeRay tells in ``status`` of the RayJob how its Ray job ended, and counts its failures. Kueue tells in the conditions
of the RayJob's Workload what it waits for and why it was taken its machines
(https://kueue.sigs.k8s.io/docs/concepts/workload). Which pod cannot start, and why, its own status tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launchers.jobs.status import JobState, JobStatus

Object = dict[str, Any]

# JobDeploymentStatus of KubeRay (ray-operator/apis/ray/v1/rayjob_types.go).
_FAILED = ("Failed", "ValidationFailed")
# Of a container that may wait for good.
_STARTING = ("ContainerCreating", "PodInitializing")


def status_of(job: Object, workload: Object | None, pods: Sequence[Object] = ()) -> JobStatus:
    """One job.

    Args:
        job: RayJob.
        workload: Kueue's of it; None before Kueue has seen the job.
        pods: those of its Ray cluster.
    """
    state, reason = _state(job, workload, pods)
    running = state is JobState.RUNNING
    return JobStatus(
        state,
        reason,
        restarts=_restarts(job, workload),
        nodes=tuple(sorted({pod["spec"]["nodeName"] for pod in pods if pod["spec"].get("nodeName")}))
        if running
        else (),
        submitted=job["metadata"].get("creationTimestamp"),
        started=_status(job).get("startTime") if running or is_over(job) else None,
        ended=_status(job).get("endTime") if is_over(job) else None,
    )


def is_over(job: Object) -> bool:
    """Whether KubeRay does nothing more for a RayJob."""
    return _status(job).get("jobDeploymentStatus") in ("Complete", *_FAILED)


def is_admitted(workload: Object | None) -> bool:
    """Whether Kueue has given a job its machines."""
    return workload is not None and _holds(workload, "Admitted")


def is_active(workload: Object) -> bool:
    """Whether Kueue is to run a workload, now or when there is room."""
    return workload["spec"].get("active", True)


def _state(job: Object, workload: Object | None, pods: Sequence[Object]) -> tuple[JobState, str | None]:
    status = _status(job)
    if is_over(job):
        return _ending(status)
    if "deletionTimestamp" in job["metadata"]:
        return JobState.CANCELLED, "its pods save and leave"
    if is_admitted(workload):
        return JobState.RUNNING, _why_not_at_work(status, pods)
    waiting = JobState.REQUEUED if _restarts(job, workload) else JobState.PENDING
    if workload is None:
        if not job["spec"].get("suspend"):
            return JobState.RUNNING, "not held by Kueue: is its integration ray.io/rayjob on?"
        return waiting, "Kueue has not seen it yet"
    return waiting, _why_not_admitted(workload)


def _ending(status: Object) -> tuple[JobState, str | None]:
    if status.get("jobStatus") == "SUCCEEDED":
        return JobState.SUCCEEDED, None
    if status.get("jobStatus") == "STOPPED":
        return JobState.FAILED, "stopped, because no restart mends its failure, or by somebody: its log tells"
    return JobState.FAILED, _words(status.get("reason"), status.get("message")) or "KubeRay does not say why"


def _why_not_at_work(status: Object, pods: Sequence[Object]) -> str | None:
    if status.get("jobDeploymentStatus") == "Running":
        return None
    for pod in pods:
        if reason := _pod_waits_for(pod):
            return f"pod {pod['metadata']['name']}: {reason}"
    if status.get("jobDeploymentStatus") in ("Retrying", "Suspending"):
        return "the pods of the last start leave"
    return "its pods start"


def _pod_waits_for(pod: Object) -> str | None:
    status = pod.get("status", {})
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") and waiting["reason"] not in _STARTING:
            return _words(waiting["reason"], waiting.get("message"))
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return _words(scheduled.get("reason"), scheduled.get("message"))
    return None


def _why_not_admitted(workload: Object) -> str:
    if not is_active(workload):
        return "deactivated in Kueue: astroclip jobs requeue lets it go on"
    evicted, quota = _condition(workload, "Evicted"), _condition(workload, "QuotaReserved")
    why = _words(evicted.get("reason"), evicted.get("message")) if evicted.get("status") == "True" else None
    if quota.get("status") == "True":
        waits = "waits for the queue's admission checks"
    else:
        waits = quota.get("message") or "waits for its turn in the queue"
    return "; ".join(words for words in (why, waits) if words)


def _restarts(job: Object, workload: Object | None) -> int:
    """Failures that KubeRay has started again after, and evictions by Kueue."""
    failed = _status(job).get("failed") or 0
    if _status(job).get("jobDeploymentStatus") in _FAILED:
        failed -= 1
    evictions = (workload or {}).get("status", {}).get("schedulingStats", {}).get("evictions", ())
    return max(failed, 0) + sum(one["count"] for one in evictions)


def _status(job: Object) -> Object:
    return job.get("status") or {}


def _holds(thing: Object, kind: str) -> bool:
    return _condition(thing, kind).get("status") == "True"


def _condition(thing: Object, kind: str) -> Object:
    conditions = thing.get("status", {}).get("conditions", ())
    return next((one for one in conditions if one["type"] == kind), {})


def _words(reason: str | None, message: str | None) -> str | None:
    return ": ".join(words for words in (reason, message) if words) or None
