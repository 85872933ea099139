"""What a job file may not ask of Kubernetes, told before anything is sent."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from astroclip_dist.errors import ConfigError
from launchers.jobs.places import KubernetesPlace
from launchers.jobs.task import Task

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# KubeRay sets these, or takes them as a wish for what our manifest does not have
# (ray-operator/controllers/ray/{common/pod.go,utils/validation.go}).
_OF_KUBERAY = re.compile(
    r"RAY_(ADDRESS|IP|AUTH_\w+|REDIS_ADDRESS|CLUSTER_\w+|enable_autoscaler_v2)|FQ_RAY_IP|REDIS_\w+"
)
_MOST = 2**31 - 1
SHARED_MEMORY = "/dev/shm"
_TRACKING = "MLFLOW_TRACKING_URI"


def place_of(task: Task) -> KubernetesPlace:
    """Where the task is to run, once it is known to ask for nothing that cannot be there.

    Raises:
        ConfigError: the field of the job file, its value, the mend.
    """
    job, place = task.job, task.job.launcher
    assert isinstance(place, KubernetesPlace)
    if job.queue is None:
        raise ConfigError("queue", "missing", "Name the LocalQueue of Kueue: kubectl get localqueues.")
    for field, name in (("queue", job.queue), ("priority", job.priority)):
        if name is not None and not _LABEL.fullmatch(name):
            raise ConfigError(field, name, "Kubernetes wants 1 to 63 lower-case letters, digits and '-' here.")
    if not job.image or re.search(r"\s", job.image):
        raise ConfigError("image", job.image, "Name the container image, with its registry and tag.")
    if job.cpus_per_node is None:
        raise ConfigError("cpus_per_node", "missing", "A pod without it counts as nothing in the queue's quota.")
    if job.memory_per_node is None:
        raise ConfigError("memory_per_node", "missing", "A pod without it counts as nothing in the queue's quota.")
    if job.gpus_per_node == 0 and job.workers_of_a_node > job.cpus_per_node:
        mend = f"A node has {job.workers_of_a_node} workers, of which each needs one."
        raise ConfigError("cpus_per_node", job.cpus_per_node, mend)
    for field, number in (("nodes", job.nodes), ("max_restarts", job.max_restarts)):
        if number > _MOST:
            raise ConfigError(field, number, f"Kubernetes counts to {_MOST:,}.")
    if job.time_limit is not None:
        mend = (
            "Kueue has no limit after which it queues a job again: leave it out; a higher priority takes machines back."
        )
        raise ConfigError("time_limit", job.time_limit, mend)
    if job.sweep_at_once is not None:
        raise ConfigError("sweep_at_once", job.sweep_at_once, "The quota of the queue decides that: leave it out.")
    if job.secrets and place.secret is None:
        mend = f"Name the Secret that holds {', '.join(job.secrets)}."
        raise ConfigError("launcher.secret", "missing", mend)
    for name in (*job.environment, *job.secrets):
        if _OF_KUBERAY.fullmatch(name):
            raise ConfigError("environment", name, "KubeRay sets it: leave it out.")
    _files_are_shared(task, place)
    return place


def _files_are_shared(task: Task, place: KubernetesPlace) -> None:
    """Nothing is read or written that the next pod would not find."""
    if place.volume is not None and place.volume.mount == SHARED_MEMORY:
        raise ConfigError("launcher.volume.mount", SHARED_MEMORY, "The pods' shared memory is there: choose another.")
    for field, url in _urls(task):
        parts = urlsplit(url)
        if parts.scheme == "memory":
            raise ConfigError(field, url, "Every pod has another memory: use object storage, or the volume.")
        if parts.scheme not in ("file", "sqlite"):
            continue
        # SQLAlchemy's absolute paths begin with a fourth slash.
        path = PurePosixPath("/" + unquote(parts.path).lstrip("/"))
        if place.volume is None:
            raise ConfigError(field, url, "A pod's own disk ends with it: use object storage, or launcher.volume.")
        if ".." in path.parts or not path.is_relative_to(place.volume.mount):
            raise ConfigError(field, url, f"The pods share {place.volume.mount} alone: give a path below it.")


def _urls(task: Task) -> list[tuple[str, str]]:
    if task.config is None:
        return [("command", argument) for argument in task.arguments if argument.startswith(("file:", "sqlite:"))]
    tracking = task.config.tracking.uri or task.environment.get(_TRACKING)
    if tracking is None and _TRACKING not in task.job.secrets and not task.config.run.startswith("file:"):
        mend = f"MLflow cannot keep its file at {task.config.run}: give a server that the pods reach."
        raise ConfigError("tracking.uri", "missing", mend)
    return [
        ("run", task.config.run),
        *(("data", url) for url in task.config.data_urls),
        *([("tracking.uri", tracking)] if tracking else []),
    ]
