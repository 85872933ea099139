"""A job file: what is to be run, on what, where, and how often it may be started again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from astroclip_dist.config.load import merge, parse_override, read_layers
from astroclip_dist.config.strict import Section, validated
from astroclip_dist.config.units import Bytes, Seconds
from astroclip_dist.errors import ConfigError
from launchers.jobs.places import Place

# A DNS label, short enough for what KubeRay appends to it.
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"(?i)(secret|token|passw|credential|(^|_)key(_|$)|api_?key|access_key)")


def job_name(name: str) -> str:
    """Checked: it names the job at every engine."""
    if not _NAME.fullmatch(name):
        raise ValueError("a job's name is 1 to 47 lower-case letters, digits and '-', a letter first, no '-' last")
    return name


def _variable(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise ValueError("a variable's name is letters, digits and '_'")
    return name


JobName = Annotated[str, AfterValidator(job_name)]
Variable = Annotated[str, AfterValidator(_variable)]


class JobSpec(Section):
    """One job. It trains (``config``), or runs another command of ``astroclip`` (``command``)."""

    name: JobName = Field(description="submitting the same name again gives the same job")
    config: str | None = Field(default=None, description="configuration of a training, a path beside the job file")
    override: dict[str, Any] = Field(default_factory=dict, description="values over those of the configuration")
    sweep: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict, description="configuration key -> values: one run for each combination"
    )
    sweep_at_once: int | None = Field(default=None, gt=0, description="runs of a sweep at one time; all if unset")
    command: tuple[str, ...] | None = Field(default=None, description="arguments of astroclip: [embed, RUN, DATA, OUT]")
    launcher: Place
    queue: str | None = Field(default=None, description="partition of Slurm, LocalQueue of Kueue")
    priority: str | None = Field(
        default=None, description="QOS of Slurm, WorkloadPriorityClass of Kueue; low, normal or high on this machine"
    )
    nodes: int = Field(default=1, gt=0)
    min_nodes: int | None = Field(default=None, gt=0, description="start and go on with as few; ``nodes`` if unset")
    gpus_per_node: int = Field(default=0, ge=0)
    workers_per_node: int | None = Field(default=None, gt=0, description="one a GPU if unset; one a node without GPUs")
    cpus_per_node: int | None = Field(default=None, gt=0)
    memory_per_node: Bytes | None = Field(default=None, gt=0)
    time_limit: Seconds | None = Field(
        default=None, gt=0, description="of one start; the run saves and is queued again"
    )
    max_restarts: int = Field(
        default=100, ge=0, description="how often the queue may start it again, whatever the cause"
    )
    environment: dict[Variable, str] = Field(default_factory=dict)
    secrets: tuple[Variable, ...] = Field(default=(), description="variables whose values are never written down")
    image: str | None = Field(default=None, description="container image with astroclip-dist")

    @model_validator(mode="after")
    def _one_thing_to_do(self) -> Self:
        if (self.config is None) == (self.command is None):
            raise ConfigError("config", self.config, "Give either a training's config, or a command of astroclip.")
        if self.command is not None and (self.override or self.sweep):
            raise ConfigError("override", "given", "override and sweep belong to a config, not to a command.")
        if any(not values for values in self.sweep.values()):
            raise ConfigError("sweep", dict(self.sweep), "Give every key of a sweep at least one value.")
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ConfigError("min_nodes", self.min_nodes, f"It is more than nodes = {self.nodes}.")
        if self.command is not None and self.nodes > 1:
            raise ConfigError("nodes", self.nodes, "A command other than a training runs on one node.")
        return self

    @model_validator(mode="after")
    def _secrets_are_no_values(self) -> Self:
        for name, value in self.environment.items():
            if _SECRET.search(name) or re.search(r"://[^/\s]*:[^/\s]*@", value):
                raise ConfigError(
                    f"environment.{name}",
                    "***",
                    f"That looks like a secret: list {name} under secrets, and give its value outside of the job file.",
                )
        return self

    @property
    def workers_of_a_node(self) -> int:
        return self.workers_per_node or self.gpus_per_node or 1


def load_job(path: Path, overrides: tuple[str, ...] | list[str] = ()) -> JobSpec:
    """A job file, which may extend others as configurations do, under ``key=value`` of the command line.

    Raises:
        ConfigError: file, field, value and mend.
    """
    values = read_layers(path)
    for override in overrides:
        values = merge(values, parse_override(override))
    return job_beside(path.parent, values)


def job_beside(folder: Path, values: dict[str, Any]) -> JobSpec:
    """Checked values of a job file in a folder, from which its ``config`` is meant.

    Raises:
        ConfigError
    """
    if isinstance(config := values.get("config"), str):
        values = {**values, "config": str((folder / config).resolve())}
    return validated(JobSpec, values)
