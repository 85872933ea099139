"""A task as the request that Ray's Jobs API takes."""

from __future__ import annotations

import getpass
import math
import re
import shlex
from typing import Any

from astroclip_dist.errors import ConfigError
from launchers.jobs.task import Task
from launchers.ray.restarts import RESTARTS
from launchers.ray.secret_names import SECRETS_VARIABLE

# Seconds beyond the deadline of a save: for the step that is under way, and for the records of the run.
_LEAVE_MARGIN = 30
# What Ray, which expands the values of variables on the nodes, would replace.
_EXPANDED = re.compile(r"\$(\w|\{)")
MAX_RESTARTS = "max_restarts"
STOP_WAIT_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"


def submission_id(task_name: str, attempt: int) -> str:
    """The same for the same user, task and attempt, so that a job is found by who never heard the answer."""
    user = re.sub(r"[^a-z0-9]+", "-", getpass.getuser().lower()).strip("-")
    return f"{user}-{task_name}-{attempt}"


def request_of(task: Task, attempt: int) -> dict[str, Any]:
    """The body of ``POST /api/jobs/``.

    The driver of a training runs on the head, which asks for no room: on another node it would be one more machine
    whose death ends the job. Any other command runs where the room is that it asks for.

    Raises:
        ConfigError: the job asks for what Ray does not have.
    """
    _refuse_what_ray_has_not(task)
    stop_within = math.ceil(task.config.health.preemption_deadline if task.config else 0) + _LEAVE_MARGIN
    job = task.job
    limits = [f"--max-restarts={job.max_restarts}", f"--stop-within={stop_within}"]
    if job.time_limit is not None:
        limits.append(f"--time-limit={job.time_limit:g}")
    # exec: no shell stays between Ray, which stops the job, and the command.
    entrypoint = "exec " + shlex.join(["python", "-m", "launchers.ray.job", *limits, "--", *task.arguments])
    variables = {
        **task.environment,
        # A training that is told to end saves first; Ray would kill it after 3 s.
        STOP_WAIT_VARIABLE: str(stop_within),
        # Logs are read in files and by programs.
        "RAY_COLOR_PREFIX": "0",
        **({SECRETS_VARIABLE: " ".join(job.secrets)} if job.secrets else {}),
    }
    return {
        "submission_id": submission_id(task.name, attempt),
        "entrypoint": entrypoint,
        "runtime_env": {"env_vars": variables},
        "metadata": {
            "name": task.name,
            "digest": task.digest,
            "attempt": str(attempt),
            RESTARTS: "0",
            MAX_RESTARTS: str(job.max_restarts),
        },
        **(_room_of(task) if task.config is None else {}),
    }


def _room_of(task: Task) -> dict[str, Any]:
    job = task.job
    memory = {} if job.memory_per_node is None else {"entrypoint_memory": job.memory_per_node}
    return {"entrypoint_num_cpus": job.cpus_per_node or 1, "entrypoint_num_gpus": job.gpus_per_node, **memory}


def _refuse_what_ray_has_not(task: Task) -> None:
    job = task.job
    a_worker = "A worker takes one GPU, or one CPU: give workers_per_node."
    refused = {
        "queue": "Ray has no queues: unset it; what finds no room waits for it.",
        "priority": "Ray has no priorities: unset it.",
        "image": "A running cluster has its software: unset it, or give the image to the cluster's nodes.",
        "sweep_at_once": "Ray starts all jobs at once: unset it, or take another launcher.",
        **({"cpus_per_node": a_worker, "memory_per_node": a_worker} if task.config is not None else {}),
    }
    for field, mend in refused.items():
        if (value := getattr(job, field)) is not None:
            raise ConfigError(field, value, mend)
    for name, value in task.environment.items():
        if found := _EXPANDED.search(value):
            where = "config" if name not in job.environment else f"environment.{name}"
            cut = value[found.start() : found.start() + 20].split("\n")[0]
            raise ConfigError(where, cut, "Ray replaces $NAME by a variable of the node: write the value itself.")
