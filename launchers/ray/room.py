"""Whether a cluster is one for our jobs: its version of Ray, and how much it has."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from astroclip_dist.errors import ConfigError
from launchers.jobs.task import Task
from launchers.ray.job_client import RayJobsClient

_MORE = "join nodes (ops/ray_cluster.py join), or ask for less"


def check_version(client: RayJobsClient) -> None:
    """Ours, but for the patch level: the launcher rests on parts of Ray that change.

    Raises:
        ConfigError: another.
    """
    there, here = client.version(), version("ray")
    if there.split(".")[:2] != here.split(".")[:2]:
        raise ConfigError("launcher.address", f"a cluster with Ray {there}", f"Start one with Ray {here}, as here.")


def check_room(client: RayJobsClient, tasks: Sequence[Task]) -> None:
    """Whether each task finds room when nobody else uses the cluster; whether it does now, Ray sees.

    Raises:
        ConfigError: it would wait for ever.
    """
    nodes = [node["resources_total"] for node in client.nodes()]
    for task in tasks:
        job = task.job
        kind = "GPU" if job.gpus_per_node else "CPU"
        if task.config is not None:
            least, room = task.config.world_sizes[0], sum(int(node.get(kind, 0)) for node in nodes)
            if least > room:
                field = "nodes" if job.min_nodes is None else "min_nodes"
                needs = f"{job.min_nodes or job.nodes} nodes with {job.workers_of_a_node} workers"
                raise ConfigError(field, needs, f"The cluster has {room} {kind}s for {least} workers: {_MORE}.")
            continue
        wanted = {"CPU": job.cpus_per_node or 1, "GPU": job.gpus_per_node, "memory": job.memory_per_node or 0}
        if not any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
            asked = ", ".join(f"{amount} {name}" for name, amount in wanted.items() if amount)
            raise ConfigError("gpus_per_node" if job.gpus_per_node else "nodes", asked, f"No node has that: {_MORE}.")
