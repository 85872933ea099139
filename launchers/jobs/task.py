"""A job ready to be handed to a queue: one command with all that it needs, the same wherever it is started."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from astroclip_dist.config import RunConfig, dump_config
from astroclip_dist.config.load import merge, read_layers
from astroclip_dist.config.strict import validated
from astroclip_dist.errors import ConfigError
from launchers.jobs.spec import JobSpec, job_name

# The resolved configuration travels in this variable: no file of the submitting machine needs to be on the nodes.
CONFIG_VARIABLE = "ASTROCLIP_CONFIG"
# Slurm's own limit of an array, where a site has not set another.
_MOST_RUNS = 1000
_LIMITS = {
    "queue",
    "priority",
    "nodes",
    "min_nodes",
    "gpus_per_node",
    "workers_per_node",
    "cpus_per_node",
    "memory_per_node",
    "time_limit",
    "max_restarts",
    "sweep_at_once",
}


@dataclass(frozen=True)
class Task:
    """One command of one job.

    Attributes:
        name: of the job, or of one point of its sweep.
        job: resources, place and limits.
        config: resolved configuration of a training, None for another command.
    """

    name: str
    job: JobSpec
    config: RunConfig | None

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of ``astroclip``."""
        return self.job.command or ("train", f"env:{CONFIG_VARIABLE}")

    @cached_property
    def environment(self) -> dict[str, str]:
        """Variables to set; secrets are not among them."""
        config = {} if self.config is None else {CONFIG_VARIABLE: dump_config(self.config)}
        return {**self.job.environment, **config}

    @property
    def run(self) -> str | None:
        """URL of the run folder."""
        return self.config.run if self.config else None

    @property
    def sweep(self) -> str | None:
        """The name of the job whose sweep this is a point of."""
        return self.job.name if self.job.sweep else None

    @cached_property
    def digest(self) -> str:
        """Tells this task from another of its name: of everything that it computes and where (not of limits, which may
        be changed for another try)."""
        what = {
            "arguments": self.arguments,
            "environment": self.environment,
            "image": self.job.image,
            "launcher": self.job.launcher.model_dump(mode="json"),
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def limits(self) -> dict[str, Any]:
        """What the job asks of its queue, and the digest leaves out; as JSON values."""
        return self.job.model_dump(mode="json", include=_LIMITS)


def tasks_of(job: JobSpec) -> tuple[Task, ...]:
    """The job's only task, or those of its sweep in the order of their numbers: ``NAME-0``, ``NAME-1``, ...

    The numbers count the last key fastest, keys in the order of the alphabet. Each run of a sweep has its own folder
    below the run URL of the configuration, named by its number.

    Raises:
        ConfigError: the configuration, or what the job makes of it.
    """
    if CONFIG_VARIABLE in job.environment or CONFIG_VARIABLE in job.secrets:
        raise ConfigError("environment", CONFIG_VARIABLE, "The job's own configuration travels in it: leave it out.")
    if job.config is None:
        return (Task(job.name, job, None),)
    layers = read_layers(Path(job.config))
    if not job.sweep:
        return (Task(job.name, job, _config(job, layers, {})),)
    if (runs := math.prod(map(len, job.sweep.values()))) > _MOST_RUNS:
        raise ConfigError("sweep", f"{runs:,} runs", f"{_MOST_RUNS:,} at most: make several jobs of it.")
    try:
        job_name(f"{job.name}-{runs - 1}")
    except ValueError as error:
        raise ConfigError("name", job.name, f"It leaves no room for the numbers of the sweep: {error}.") from error
    keys = sorted(job.sweep)
    points = itertools.product(*(job.sweep[key] for key in keys))
    return tuple(
        Task(f"{job.name}-{number}", job, _config(job, layers, dict(zip(keys, point, strict=True)), folder=str(number)))
        for number, point in enumerate(points)
    )


def _config(job: JobSpec, layers: Mapping[str, Any], point: Mapping[str, Any], folder: str | None = None) -> RunConfig:
    values = merge(merge(dict(layers), _nested(job.override)), _nested(point))
    if folder is not None and isinstance(values.get("run"), str):
        values["run"] = f"{values['run'].rstrip('/')}/{folder}"
    values["workers"] = job.nodes * job.workers_of_a_node
    values["min_workers"] = None if job.min_nodes is None else job.min_nodes * job.workers_of_a_node
    if job.nodes > 1 or job.launcher.name in ("ray", "kubernetes"):
        values["launcher"] = "ray"
    if values.get("device", "auto") == "auto":
        # What it asks for, not what happens to be there: a node whose GPUs have failed must not train for days.
        if job.gpus_per_node:
            values["device"] = "cuda"
        elif job.launcher.name != "local":
            values["device"] = "cpu"
    return validated(RunConfig, values)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """``{"optimizer.lr": 1e-4}`` as ``{"optimizer": {"lr": 1e-4}}``."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        inner: Any = value
        for part in reversed(key.split(".")):
            inner = {part: inner}
        nested = merge(nested, inner)
    return nested
