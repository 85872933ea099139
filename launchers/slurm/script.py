"""The script that sbatch gets: what the job asks for, its environment, and one command."""

from __future__ import annotations

import hashlib
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from astroclip_dist.errors import ConfigError
from launchers.jobs.places import SlurmPlace
from launchers.jobs.task import Task

# sbatch's own limit unless the site has changed it (max_script_size).
_MOST_BYTES = 4 * 1024 * 1024
_MINUTE_S = 60.0


def script_of(tasks: Sequence[Task], place: SlurmPlace, attempt: int, after: Sequence[str]) -> str:
    """The script of a task, or of the array that all tasks of a sweep are.

    Args:
        after: ids of jobs that must have succeeded.

    Raises:
        ConfigError: Slurm cannot do what the job asks for.
    """
    header = [f"#SBATCH {option}" for option in _options(tasks, place, attempt, after)]
    body = [
        # Ready for it only when Python is: a notice that comes before would end the job instead.
        "trap '' USR2",
        "set -e",
        *place.setup,
        *_environment(tasks),
        f"exec {shlex.join(_command(tasks[0], place))}",
    ]
    if secrets := tasks[0].job.secrets:
        header.append(f"# From the environment of sbatch: {', '.join(secrets)}")
    script = "\n".join(["#!/bin/bash", *header, "", *body, ""])
    if len(script.encode()) > _MOST_BYTES:
        raise ConfigError("sweep", f"{len(tasks)} runs", "Their configurations are too long for one job: make several.")
    return script


def comment_of(tasks: Sequence[Task], attempt: int) -> str:
    """What tells a job of ours from others: name, attempt, and digest of what it computes."""
    digests = [task.digest for task in tasks]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()[:12]
    return f"astroclip {tasks[0].job.name} {attempt} {digest}"


def array_index(task: Task) -> int | None:
    """The number of a point of a sweep, None for a job that is none."""
    return None if task.name == task.job.name else int(task.name.removeprefix(f"{task.job.name}-"))


def log_path(task: Task, place: SlurmPlace, job_id: str) -> Path:
    """Where a job prints to, over all its starts."""
    return Path(place.folder) / task.name / f"{job_id}.log"


def _options(tasks: Sequence[Task], place: SlurmPlace, attempt: int, after: Sequence[str]) -> list[str]:
    job = tasks[0].job
    _check(tasks, place)
    indices = [index for task in tasks if (index := array_index(task)) is not None]
    folder = place.folder.replace("%", "%%")
    output = f"{folder}/{job.name}-%a/%A_%a.log" if indices else f"{folder}/{job.name}/%j.log"
    options: dict[str, object] = {
        "job-name": job.name,
        "comment": comment_of(tasks, attempt),
        "output": output,
        "open-mode": "append",
        "requeue": None,
        "export": "ALL",
        "nodes": job.nodes if job.min_nodes in (None, job.nodes) else f"{job.min_nodes}-{job.nodes}",
        "ntasks-per-node": 1,
        "signal": f"B:USR2@{math.ceil(place.notice)}",
    }
    if indices:
        at_once = f"%{job.sweep_at_once}" if job.sweep_at_once else ""
        options["array"] = ",".join(map(str, indices)) + at_once
    if job.queue:
        options["partition"] = job.queue
    if job.priority:
        options["qos"] = job.priority
    if place.account:
        options["account"] = place.account
    if place.constraint:
        options["constraint"] = place.constraint
    if place.exclude:
        options["exclude"] = ",".join(place.exclude)
    if job.gpus_per_node:
        options["gres"] = ":".join(filter(None, ("gpu", place.gpu_type, str(job.gpus_per_node))))
    if job.cpus_per_node:
        options["cpus-per-task"] = job.cpus_per_node
    if job.memory_per_node:
        options["mem"] = f"{math.ceil(job.memory_per_node / 2**20)}M"
    if job.time_limit:
        options["time"] = math.ceil(job.time_limit / _MINUTE_S)
    if after:
        options["dependency"] = f"afterok:{':'.join(after)}"
        options["kill-on-invalid-dep"] = "yes"
    return [_option(name, value) for name, value in options.items()]


def _option(name: str, value: object) -> str:
    if value is None:
        return f"--{name}"
    text = str(value)
    if any(character in text for character in '\n\r"\\'):
        raise ConfigError(f"--{name}", repr(text), "Line ends, quotes and backslashes cannot be part of it.")
    return f'--{name}="{text}"' if " " in text or "#" in text else f"--{name}={text}"


def _check(tasks: Sequence[Task], place: SlurmPlace) -> None:
    job = tasks[0].job
    if job.image:
        raise ConfigError(
            "image", job.image, "Here, jobs of Slurm start no containers: set launcher.python, and no image."
        )
    if job.time_limit is not None and place.notice >= job.time_limit:
        raise ConfigError("launcher.notice", place.notice, f"It leaves nothing of time_limit = {job.time_limit:g} s.")
    for task in tasks:
        if task.config is not None and task.config.health.preemption_deadline > place.notice:
            raise ConfigError(
                "launcher.notice",
                place.notice,
                f"It is shorter than health.preemption_deadline = {task.config.health.preemption_deadline:g} s: "
                "Slurm would end the job in the middle of its last save.",
            )


def _environment(tasks: Sequence[Task]) -> list[str]:
    """What the tasks have in common, and by number what they have not."""
    common = {
        name: value
        for name, value in tasks[0].environment.items()
        if all(task.environment.get(name) == value for task in tasks)
    }
    lines = _exports(common)
    own = {
        index: _exports(_without(task.environment, common))
        for task in tasks
        if (index := array_index(task)) is not None
    }
    if any(own.values()):
        lines.append('case "$SLURM_ARRAY_TASK_ID" in')
        for index, exports in own.items():
            lines += [f"{index})", *exports, ";;"]
        lines.append("esac")
    return lines


def _exports(environment: Mapping[str, str]) -> list[str]:
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


def _without(environment: Mapping[str, str], common: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in common}


def _command(task: Task, place: SlurmPlace) -> list[str]:
    job = task.job
    command = [place.python or sys.executable, "-u", "-m", "launchers.slurm.batch"]
    command.append(f"--max-restarts={job.max_restarts}")
    if task.config is not None and task.config.launcher == "ray":
        command += [f"--ray-slots={job.workers_of_a_node}", f"--ray-folder={place.folder}/{job.name}"]
        if job.gpus_per_node:
            command.append(f"--ray-gpus={job.gpus_per_node}")
    return [*command, "--", *task.arguments]
