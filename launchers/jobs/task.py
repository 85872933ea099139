"""A job ready to be handed to a queue: one command with all that it needs, the same wherever it is started."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from astroclip_dist.config import RunConfig, dump_config
from astroclip_dist.config.load import merge, parse_override, read_layers
from astroclip_dist.config.strict import validated
from astroclip_dist.errors import ConfigError
from launchers.jobs.spec import JobSpec, job_name

# The resolved configuration travels in this variable: no file of the submitting machine needs to be on the nodes.
CONFIG_VARIABLE = "ASTROCLIP_CONFIG"


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
        return self.job.command if self.job.command is not None else ("train", f"env:{CONFIG_VARIABLE}")

    @cached_property
    def environment(self) -> dict[str, str]:
        """Variables to set; secrets are not among them."""
        config = {} if self.config is None else {CONFIG_VARIABLE: dump_config(self.config)}
        return {**self.job.environment, **config}

    @property
    def run(self) -> str | None:
        """URL of the run folder."""
        return self.config.run if self.config else None

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


def tasks_of(job: JobSpec) -> tuple[Task, ...]:
    """The job's only task, or those of its sweep in the order of their numbers: ``NAME-0``, ``NAME-1``, ...

    Each run of a sweep has its own folder below the run URL of the configuration.

    Raises:
        ConfigError: the configuration, or what the job makes of it.
    """
    if job.config is None:
        return (Task(job.name, job, None),)
    if not job.sweep:
        return (Task(job.name, job, _config(job, {})),)
    points = list(itertools.product(*job.sweep.values()))
    tasks = []
    for number, point in enumerate(points):
        values: dict[str, Any] = {}
        for key, value in zip(job.sweep, point, strict=True):
            values = merge(values, parse_override(f"{key}={json.dumps(value)}"))
        try:
            name = job_name(f"{job.name}-{number}")
        except ValueError as error:
            raise ConfigError("name", job.name, f"It leaves no room for the numbers of the sweep: {error}") from error
        tasks.append(Task(name, job, _config(job, values, folder=str(number))))
    return tuple(tasks)


def _config(job: JobSpec, above: dict[str, Any], folder: str | None = None) -> RunConfig:
    assert job.config is not None
    values = merge(merge(read_layers(Path(job.config)), _nested(job.override)), above)
    if folder is not None and isinstance(values.get("run"), str):
        values["run"] = f"{values['run'].rstrip('/')}/{folder}"
    values["workers"] = job.nodes * job.workers_of_a_node
    values["min_workers"] = None if job.min_nodes is None else job.min_nodes * job.workers_of_a_node
    if job.nodes > 1 or job.launcher.name in ("ray", "kubernetes"):
        values["launcher"] = "ray"
    return validated(RunConfig, values)


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """``{"optimizer.lr": 1e-4}`` means the same as ``{"optimizer": {"lr": 1e-4}}``."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        inner: Any = _nested(value) if isinstance(value, dict) else value
        for part in reversed(str(key).split(".")):
            inner = {part: inner}
        nested = merge(nested, inner)
    return nested
