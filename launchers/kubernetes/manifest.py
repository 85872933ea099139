"""A task as a RayJob of KubeRay in a queue of Kueue: https://docs.ray.io/en/latest/cluster/kubernetes,
https://kueue.sigs.k8s.io/docs/tasks/run/rayjobs.

One node is one pod. A task of one node has a Ray cluster of its head alone, with all that the task asks for; one of
several has a small head beside them, which only coordinates.
"""

from __future__ import annotations

import json
import math
from typing import Any

from astroclip_dist.config import RunConfig
from launchers.jobs.places import KubernetesPlace
from launchers.jobs.task import Task
from launchers.kubernetes.refusals import SHARED_MEMORY, place_of

Manifest = dict[str, Any]

# Of the image; the launcher is written for it (launchers/ray/sizes.py).
RAY_VERSION = "2.60.0"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
TOPOLOGY_ANNOTATION = "kueue.x-k8s.io/podset-required-topology"
MANAGED_BY = {"app.kubernetes.io/managed-by": "astroclip-dist"}
ATTEMPT_LABEL = "astroclip-dist/attempt"
DIGEST_ANNOTATION = "astroclip-dist/digest"
# The arguments travel in a variable: KubeRay's shell, Ray's command line and Ray's shell each take an entry point
# apart, by rules that differ.
ARGUMENTS_VARIABLE = "ASTROCLIP_ARGUMENTS"
ENTRY_POINT = "python -m launchers.kubernetes.entrypoint"
# The launcher itself gives its workers 15 s more than they were promised, and Ray takes a moment to hear of it.
_LEAVING_TAKES_S = 20
_RAY_ENDS_WITHIN_S = 30
_PORTS = {"gcs-server": 6379, "dashboard": 8265, "metrics": 8080}
_HEAD = {"cpu": "2", "memory": "8G"}
_SUBMITTER = {"cpu": "500m", "memory": "1G"}
# The first user of the image (ops/Dockerfile).
_USER = 1000


def ray_job(task: Task, attempt: int = 0) -> Manifest:
    """The object that is handed to Kubernetes.

    Kueue sets ``suspend`` to false when the quota is there for all pods at once, and to true to take it back; KubeRay
    then deletes them. Worker groups have one size: a queue of Kueue admits all of them or none, and allows no
    autoscaling (``kubernetes-sigs/kueue``, pkg/controller/jobs/raycluster/common.go, ValidateCreate). A run with
    ``min_nodes`` goes on with fewer while KubeRay replaces pods that were lost.

    Raises:
        ConfigError: Kubernetes cannot do what the job asks for.
    """
    place, job = place_of(task), task.job
    priority = {PRIORITY_LABEL: job.priority} if job.priority else {}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": task.name,
            "namespace": place.namespace,
            "labels": {**MANAGED_BY, ATTEMPT_LABEL: str(attempt), QUEUE_LABEL: job.queue, **priority},
            "annotations": {DIGEST_ANNOTATION: task.digest},
        },
        "spec": {
            "suspend": True,
            "entrypoint": ENTRY_POINT,
            # A pod that only submits, and whose log stays when the cluster is gone.
            "submissionMode": "K8sJobMode",
            "submitterPodTemplate": _submitter(task, place),
            "backoffLimit": job.max_restarts,
            # No activeDeadlineSeconds: after it KubeRay fails a job for good.
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": math.ceil(place.keep_for),
            "rayClusterSpec": _cluster(task, place),
        },
    }


def _cluster(task: Task, place: KubernetesPlace) -> Manifest:
    job = task.job
    spec = {"rayVersion": RAY_VERSION, "authOptions": {"mode": "token"}}
    if job.nodes == 1:
        return {**spec, "headGroupSpec": {"rayStartParams": _offers(task), "template": _node(task, place, "ray-head")}}
    workers = {
        "groupName": "nodes",
        "replicas": job.nodes,
        "minReplicas": job.nodes,
        "maxReplicas": job.nodes,
        "rayStartParams": _offers(task),
        "template": _node(task, place, "ray-worker"),
    }
    head = {"rayStartParams": {"num-cpus": "0", "num-gpus": "0"}, "template": _head(task, place)}
    return {**spec, "headGroupSpec": head, "workerGroupSpecs": [workers]}


def _offers(task: Task) -> dict[str, str]:
    """What Ray may place on a node; told, for KubeRay knows not every name of a GPU."""
    return {"num-cpus": str(task.job.cpus_per_node), "num-gpus": str(task.job.gpus_per_node)}


def _head(task: Task, place: KubernetesPlace) -> Manifest:
    return _pod(task, place, _ray_container(task, place, "ray-head", _HEAD))


def _node(task: Task, place: KubernetesPlace, container: str) -> Manifest:
    """A pod that does the work."""
    job = task.job
    assert job.memory_per_node is not None
    resources = {"cpu": str(job.cpus_per_node), "memory": quantity(job.memory_per_node)}
    if job.gpus_per_node:
        resources[place.gpu_resource] = str(job.gpus_per_node)
    template = _pod(task, place, _ray_container(task, place, container, resources))
    if job.gpus_per_node:
        toleration = {"key": place.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}
        template["spec"]["tolerations"] = [toleration]
    # Counts as the pod's memory; Ray's object store takes at most 30 % of it, NCCL little.
    memory = {
        "name": "shared-memory",
        "emptyDir": {"medium": "Memory", "sizeLimit": quantity(job.memory_per_node // 2)},
    }
    template["spec"].setdefault("volumes", []).append(memory)
    [ray] = template["spec"]["containers"]
    ray.setdefault("volumeMounts", []).append({"name": "shared-memory", "mountPath": SHARED_MEMORY})
    if place.topology:
        template["metadata"]["annotations"] = {TOPOLOGY_ANNOTATION: place.topology}
    return template


def _pod(task: Task, place: KubernetesPlace, container: Manifest) -> Manifest:
    spec: Manifest = {
        "containers": [container],
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if "lifecycle" in container:
        spec["terminationGracePeriodSeconds"] = leaves_within(task) + _RAY_ENDS_WITHIN_S
    if place.service_account:
        spec["serviceAccountName"] = place.service_account
    if place.pull_secret:
        spec["imagePullSecrets"] = [{"name": place.pull_secret}]
    if place.node_selector:
        spec["nodeSelector"] = dict(place.node_selector)
    if "volumeMounts" in container:
        assert place.volume is not None
        spec["volumes"] = [{"name": "shared", "persistentVolumeClaim": {"claimName": place.volume.name}}]
    return {"metadata": {"labels": {**MANAGED_BY, "astroclip-dist/job": task.name}}, "spec": spec}


def _ray_container(task: Task, place: KubernetesPlace, name: str, resources: dict[str, str]) -> Manifest:
    container: Manifest = {
        **_container(task, name, resources),
        "env": _environment(task, place),
        "ports": [{"name": port, "containerPort": number} for port, number in _PORTS.items()]
        if name == "ray-head"
        else [{"name": "metrics", "containerPort": _PORTS["metrics"]}],
    }
    if task.config is not None:
        leave = ["python", "-m", "launchers.kubernetes.leave", str(leaves_within(task))]
        container["lifecycle"] = {"preStop": {"exec": {"command": leave}}}
    if place.volume:
        container["volumeMounts"] = [{"name": "shared", "mountPath": place.volume.mount}]
    return container


def _submitter(task: Task, place: KubernetesPlace) -> Manifest:
    template = _pod(task, place, _container(task, "ray-job-submitter", _SUBMITTER))
    template["spec"]["restartPolicy"] = "Never"
    return template


def _container(task: Task, name: str, resources: dict[str, str]) -> Manifest:
    return {
        "name": name,
        "image": task.job.image,
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }


def _environment(task: Task, place: KubernetesPlace) -> list[Manifest]:
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        **task.environment,
        ARGUMENTS_VARIABLE: json.dumps(task.arguments),
        # From SIGTERM to SIGKILL, where the job is stopped through Ray, as KubeRay does when a RayJob is deleted.
        "RAY_JOB_STOP_WAIT_TIME_S": str(leaves_within(task)),
    }
    # Kubernetes would put the values of other variables where a value says $(NAME).
    plain = [{"name": name, "value": value.replace("$", "$$")} for name, value in settings.items()]
    secret = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": place.secret, "key": name}}} for name in task.job.secrets
    ]
    return plain + secret


def leaves_within(task: Task) -> int:
    """Seconds from the request to save and leave until the task has left."""
    return leaving_takes(task.config) if task.config is not None else _LEAVING_TAKES_S


def leaving_takes(config: RunConfig) -> int:
    """Seconds from the request to save and leave until a training has left."""
    return math.ceil(config.health.preemption_deadline) + _LEAVING_TAKES_S


def quantity(number: int) -> str:
    """Bytes as Kubernetes writes them, exactly."""
    for suffix, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number % factor == 0:
            return f"{number // factor}{suffix}"
    return str(number)
