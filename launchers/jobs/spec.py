"""A job file: what is to be run, on what, where, and how often it may be started again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from astroclip_dist.config.load import merge, parse_override, read_layers
from astroclip_dist.config.strict import Section, validated
from astroclip_dist.config.units import Bytes, Seconds
from astroclip_dist.errors import ConfigError
from launchers.jobs.places import Place

# A DNS label, short enough for what KubeRay appends to it.
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"(?i)secret|passw|passphrase|credential|(^|_)(tokens?|(api|access)?_?keys?)(_|$)")
# Where a secret lies is none: AWS_SHARED_CREDENTIALS_FILE, RAY_AUTH_TOKEN_PATH.
_PLACE_OF_SECRET = re.compile(r"(?i)_(file|path|dir)$")
_PASSWORD_IN_URL = re.compile(r"://[^/\s]*:[^/\s]*@")
# A number without a unit is bytes: 64 was not meant so.
_LEAST_MEMORY = 100_000_000


def job_name(name: str) -> str:
    """Checked: it names the job at every engine."""
    if not _NAME.fullmatch(name):
        raise ValueError("a job's name is 1 to 47 lower-case letters, digits and '-', a letter first, no '-' last")
    return name


def _variable(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise ValueError("a variable's name is letters, digits and '_', no digit first")
    return name


def _variable_value(value: Any) -> Any:
    """YAML makes a number of ``OMP_NUM_THREADS: 4``."""
    if isinstance(value, str) and "\0" in value:
        raise ValueError("a variable cannot hold a zero byte")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _dotted(values: Any) -> Any:
    """``{"optimizer": {"lr": 1e-4}}`` means the same as ``{"optimizer.lr": 1e-4}``, in any order."""
    if not isinstance(values, dict):
        return values
    flat: dict[str, Any] = {}
    for path, value in sorted(_leaves(values), key=lambda leaf: leaf[0]):
        for other in flat:
            if f"{path}.".startswith(f"{other}."):
                raise ValueError(f"{path} is given twice" if path == other else f"{path} is part of {other}")
        flat[path] = value
    return flat


def _leaves(values: dict[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


JobName = Annotated[str, AfterValidator(job_name)]
Variable = Annotated[str, AfterValidator(_variable)]


class JobSpec(Section):
    """One job. It trains (``config``), or runs another command of ``astroclip`` (``command``)."""

    name: JobName = Field(description="submitting the same name again gives the same job")
    config: str | None = Field(default=None, description="configuration of a training, a path beside the job file")
    override: Annotated[dict[str, Any], BeforeValidator(_dotted)] = Field(
        default_factory=dict, description="values over those of the configuration; by dotted key when loaded"
    )
    sweep: Annotated[dict[str, tuple[Any, ...]], BeforeValidator(_dotted)] = Field(
        default_factory=dict, description="configuration key -> values: one run for each combination"
    )
    sweep_at_once: int | None = Field(default=None, gt=0, description="runs of a sweep at one time; all if unset")
    command: tuple[str, ...] | None = Field(default=None, description="arguments of astroclip: [embed, RUN, DATA, OUT]")
    launcher: Place
    queue: str | None = Field(default=None, min_length=1, description="partition of Slurm, LocalQueue of Kueue")
    priority: str | None = Field(
        default=None,
        min_length=1,
        description="QOS of Slurm, WorkloadPriorityClass of Kueue; low, normal or high on this machine",
    )
    nodes: int = Field(default=1, gt=0)
    min_nodes: int | None = Field(default=None, gt=0, description="start and go on with as few; ``nodes`` if unset")
    gpus_per_node: int = Field(default=0, ge=0)
    workers_per_node: int | None = Field(default=None, gt=0, description="one a GPU if unset; one a node without GPUs")
    cpus_per_node: int | None = Field(default=None, gt=0)
    memory_per_node: Bytes | None = Field(default=None)
    time_limit: Seconds | None = Field(
        default=None, gt=0, description="of one start; the run saves and is queued again"
    )
    max_restarts: int = Field(
        default=100, ge=0, description="how often the queue may start it again, whatever the cause"
    )
    environment: dict[Variable, Annotated[str, BeforeValidator(_variable_value)]] = Field(default_factory=dict)
    secrets: tuple[Variable, ...] = Field(default=(), description="variables whose values are never written down")
    image: str | None = Field(default=None, min_length=1, description="container image with astroclip-dist")

    @model_validator(mode="after")
    def _one_thing_to_do(self) -> Self:
        if (self.config is None) == (not self.command):
            raise ConfigError("config", self.config, "Give either a training's config, or a command of astroclip.")
        if self.command and (self.override or self.sweep):
            raise ConfigError("override", "given", "override and sweep belong to a config, not to a command.")
        return self

    @model_validator(mode="after")
    def _sweep_has_points(self) -> Self:
        for key, values in self.sweep.items():
            if not values:
                raise ConfigError(f"sweep.{key}", "[]", "Give every key of a sweep at least one value.")
            if key in self.override:
                raise ConfigError(f"override.{key}", self.override[key], "The sweep gives it: leave it out here.")
            if key == "run":
                raise ConfigError(
                    "sweep.run", values, "Each run of a sweep has a folder below the configuration's run."
                )
        if self.sweep_at_once is not None and not self.sweep:
            raise ConfigError("sweep_at_once", self.sweep_at_once, "There is no sweep: leave it out.")
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ConfigError("min_nodes", self.min_nodes, f"It is more than nodes = {self.nodes}.")
        if self.command and self.nodes > 1 and "--each-node" not in self.command:
            mend = "A command other than a training runs on one node; all are examined by doctor --each-node."
            raise ConfigError("nodes", self.nodes, mend)
        if 0 < self.gpus_per_node < (self.workers_per_node or 0):
            mend = f"It is more than gpus_per_node = {self.gpus_per_node}, and workers cannot share a GPU."
            raise ConfigError("workers_per_node", self.workers_per_node, mend)
        if self.memory_per_node is not None and self.memory_per_node < _LEAST_MEMORY:
            raise ConfigError("memory_per_node", self.memory_per_node, "Too little; write its unit: '64 GB'.")
        for key in (*self.override, *self.sweep):
            if key in ("workers", "min_workers"):
                mend = "The job's nodes, and GPUs or workers a node, say how many: leave it out."
                raise ConfigError(f"{'override' if key in self.override else 'sweep'}.{key}", "given", mend)
        return self

    @model_validator(mode="after")
    def _secrets_are_no_values(self) -> Self:
        for name, value in self.environment.items():
            if name in self.secrets:
                raise ConfigError(f"environment.{name}", "***", "It is listed under secrets: take its value out here.")
            named_so = _SECRET.search(name) and not _PLACE_OF_SECRET.search(name)
            if named_so or _PASSWORD_IN_URL.search(value):
                raise ConfigError(
                    f"environment.{name}",
                    "***",
                    f"That looks like a secret: list {name} under secrets, and give its value outside of the job file.",
                )
        for argument in self.command or ():
            if _PASSWORD_IN_URL.search(argument):
                raise ConfigError("command", "***", "It holds a password, which everybody could read: use secrets.")
        if len(set(self.secrets)) < len(self.secrets):
            raise ConfigError("secrets", ", ".join(self.secrets), "Name each variable once.")
        return self

    @property
    def workers_of_a_node(self) -> int:
        return self.workers_per_node or self.gpus_per_node or 1


def load_job(path: Path, overrides: Sequence[str] = ()) -> JobSpec:
    """A job file, which may extend others as configurations do, under ``key=value`` of the command line.

    Its ``config`` is meant from the folder of the file, that of an override from the current folder.

    Raises:
        ConfigError: file, field, value and mend.
    """
    values = _layer(path.parent, read_layers(path))
    for override in overrides:
        values = merge(values, _layer(Path.cwd(), parse_override(override)))
    return validated(JobSpec, values)


def job_beside(folder: Path, values: dict[str, Any]) -> JobSpec:
    """Checked values of a job file in a folder, from which its ``config`` is meant.

    Raises:
        ConfigError
    """
    return validated(JobSpec, _layer(folder, values))


def _layer(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Values in the one way in which those of two layers meet."""
    layer = dict(values)
    if isinstance(config := values.get("config"), str):
        layer["config"] = str((folder / config).resolve())
    for key in ("override", "sweep"):
        if key in values:
            try:
                layer[key] = _dotted(values[key])
            except ValueError as error:
                raise ConfigError(key, "ambiguous", f"{error}.") from error
    return layer
