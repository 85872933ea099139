"""Jobs that come after one another, from one file: pre-trainings, then alignment, then embeddings and evaluation."""

from __future__ import annotations

import difflib
import logging
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import Field

from astroclip_dist.config.load import merge, parse_override, read_layers
from astroclip_dist.config.strict import Section, validated
from astroclip_dist.errors import ConfigError, StorageError, UserError
from launchers.jobs.desk import JobDesk, Submission
from launchers.jobs.queue import queue_at
from launchers.jobs.spec import JobName, JobSpec, job_beside
from launchers.jobs.status import JobState
from launchers.jobs.task import Task, tasks_of

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_VALUE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OF_TRAININGS = ("config", "override", "sweep", "sweep_at_once")
_POLL_S = 5.0
log = logging.getLogger(__name__)


class StageFailedError(UserError):
    """A job of a pipeline that is watched has not succeeded."""


class _PipelineFile(Section):
    """What stands in the file; the jobs are checked one by one."""

    name: JobName
    values: dict[str, Any] = Field(
        default_factory=dict, description="what ${NAME} stands for in any text of defaults and jobs"
    )
    defaults: dict[str, Any] = Field(default_factory=dict, description="under the keys of every job")
    jobs: dict[str, dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class Stage:
    """One job of a pipeline.

    Attributes:
        key: under ``jobs`` in the file.
        after: keys of the stages that must have succeeded.
    """

    key: str
    job: JobSpec
    after: tuple[str, ...]

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        return tasks_of(self.job)

    @property
    def task_names(self) -> list[str]:
        return [task.name for task in self.tasks]


@dataclass(frozen=True)
class Pipeline:
    """Stages, each after those that it waits for."""

    name: str
    stages: tuple[Stage, ...]

    def stage(self, key: str) -> Stage:
        return next(stage for stage in self.stages if stage.key == key)


def load_pipeline(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """A pipeline file, which may extend others as configurations do, under ``key=value`` of the command line.

    Raises:
        ConfigError: the field, its value and the mend: of the file, of one of its jobs, or of a training's
            configuration.
    """
    values = read_layers(path)
    for override in overrides:
        values = merge(values, parse_override(override))
    file = validated(_PipelineFile, values)
    jobs = {key: _under_defaults(file.defaults, job) for key, job in file.jobs.items()}
    jobs = _with_values(jobs, _texts(file.values))
    stages = [_stage(path.parent, file.name, key, job, jobs) for key, job in jobs.items()]
    _refuse_twins(stages)
    return Pipeline(file.name, _in_order(stages))


def render_pipeline(pipeline: Pipeline) -> str:
    """All that would be handed over, in its order; an id that an engine has yet to give is written as ``ID-OF-JOB``."""
    texts = []
    for stage in pipeline.stages:
        queue = queue_at(stage.job.launcher)
        before = [pipeline.stage(key) for key in stage.after]
        ids = [f"ID-OF-{name}" for one in before for name in one.task_names if _engine_waits(stage, one)]
        after = f", after {', '.join(stage.after)}" if stage.after else ""
        texts.append(f"# {stage.key}{after}\n{queue.render(stage.tasks, ids).rstrip()}\n")
    return "\n".join(texts)


def submit_pipeline(desk: JobDesk, pipeline: Pipeline, wait: bool) -> list[Submission]:
    """Hand over the jobs of a pipeline, those that are there already excepted.

    Where an engine can wait for other jobs of its own it gets all at once. A job that waits for one which its engine
    cannot wait for is handed over when that has succeeded: now, or later by the same command, or by this one if it
    waits.

    Args:
        wait: stay until all jobs have succeeded.

    Returns:
        What became of each task that was handed over.

    Raises:
        StageFailedError: one of them has not succeeded, while this process waits.
        ConfigError: an engine refuses.
        StorageError: an engine does not answer.
    """
    for stage in pipeline.stages:
        queue_at(stage.job.launcher).check(stage.tasks)
    submissions: dict[str, Submission] = {}
    states: dict[str, JobState] = {}
    while True:
        left = _hand_over(desk, pipeline, submissions, states)
        if not wait:
            if left:
                log.info(
                    "left: %s. The same command hands them over when those before them have succeeded; with --wait it "
                    "stays and does it by itself",
                    ", ".join(left),
                )
            return list(submissions.values())
        if not left and all(state is JobState.SUCCEEDED for state in states.values()):
            return list(submissions.values())
        time.sleep(_POLL_S)
        _watch(desk, states)


def _hand_over(
    desk: JobDesk, pipeline: Pipeline, submissions: dict[str, Submission], states: dict[str, JobState]
) -> list[str]:
    """Hand over what can be now, and note it in ``submissions`` and ``states``, both by task.

    Returns:
        Keys of the stages that cannot be yet.
    """
    left = []
    for stage in pipeline.stages:
        if all(name in submissions for name in stage.task_names):
            continue
        before = [pipeline.stage(key) for key in stage.after]
        if not all(_may_follow(stage, one, states) for one in before):
            left.append(stage.key)
            continue
        # An engine may have forgotten what has succeeded.
        after = [name for one in before for name in one.task_names if states[name] is not JobState.SUCCEEDED]
        for submission in desk.submit(stage.tasks, after, pipeline.name):
            submissions[submission.record.name] = submission
            states[submission.record.name] = submission.record.last.state
    return left


def _may_follow(stage: Stage, before: Stage, states: dict[str, JobState]) -> bool:
    told = [states.get(name) for name in before.task_names]
    return all(state is JobState.SUCCEEDED for state in told) or (None not in told and _engine_waits(stage, before))


def _engine_waits(stage: Stage, before: Stage) -> bool:
    here = stage.job.launcher
    return here == before.job.launcher and queue_at(here).depends


def _watch(desk: JobDesk, states: dict[str, JobState]) -> None:
    """Ask once how the jobs that were handed over go.

    Raises:
        StageFailedError: the first of them that has not succeeded.
    """
    try:
        jobs = desk.jobs(list(states))
    except StorageError as error:
        log.warning("cannot ask how the jobs go, trying on: %s", error)
        return
    for job in jobs:
        name, status = job.record.name, job.status
        if status.state is not states[name]:
            log.info("%s: %s%s", name, status.state, f" ({status.reason})" if status.reason else "")
        states[name] = status.state
    for job in jobs:
        if job.status.state in (JobState.FAILED, JobState.CANCELLED, JobState.UNKNOWN):
            name, status = job.record.name, job.status
            raise StageFailedError(
                f"job {name}",
                f"{status.state}{f' ({status.reason})' if status.reason else ''}",
                f"See astroclip jobs logs {name}; the same command goes on with the pipeline.",
            )


def _texts(values: dict[str, Any]) -> dict[str, str]:
    """What the values look like in a text."""
    for name, value in values.items():
        if not _VALUE_NAME.fullmatch(name):
            raise ConfigError(f"values.{name}", value, "A value's name is letters, digits and '_'.")
        if not isinstance(value, str | int | float):
            raise ConfigError(f"values.{name}", value, "Give one text or number.")
        if isinstance(value, str) and _REFERENCE.search(value):
            raise ConfigError(f"values.{name}", value, "A value cannot refer to others: write it out.")
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}


def _with_values(jobs: dict[str, dict[str, Any]], values: dict[str, str]) -> dict[str, dict[str, Any]]:
    used: set[str] = set()

    def filled(part: Any, where: str) -> Any:
        if isinstance(part, dict):
            return {key: filled(inner, f"{where}.{key}") for key, inner in part.items()}
        if isinstance(part, list):
            return [filled(inner, where) for inner in part]
        if not isinstance(part, str):
            return part
        for name in _REFERENCE.findall(part):
            if name not in values:
                known = f"values has {', '.join(sorted(values))}." if values else "The file has no values."
                raise ConfigError(where, f"${{{name}}}", _close(name, values) or known)
            used.add(name)
        return _REFERENCE.sub(lambda found: values[found[1]], part)

    result = {key: filled(job, f"jobs.{key}") for key, job in jobs.items()}
    if unused := sorted(set(values) - used):
        raise ConfigError(f"values.{unused[0]}", values[unused[0]], f"Nothing refers to it: write ${{{unused[0]}}}.")
    return result


def _under_defaults(defaults: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """What only a training has is no default of another command."""
    if "command" in job:
        defaults = {key: value for key, value in defaults.items() if key not in _OF_TRAININGS}
    return merge(defaults, job)


def _stage(folder: Path, pipeline: str, key: str, values: dict[str, Any], keys: Iterable[str]) -> Stage:
    job = dict(values)
    after = job.pop("after", [])
    after = [after] if isinstance(after, str) else after
    if not isinstance(after, list) or not all(isinstance(other, str) for other in after):
        raise ConfigError(f"jobs.{key}.after", after, "Give the key of a job, or a list of them.")
    for other in after:
        if other not in keys:
            raise ConfigError(f"jobs.{key}.after", other, _close(other, keys) or f"The jobs are {', '.join(keys)}.")
    if "name" in job:
        raise ConfigError(f"jobs.{key}.name", job["name"], f"A job of a pipeline is named {pipeline}-{key}.")
    try:
        stage = Stage(key, job_beside(folder, {**job, "name": f"{pipeline}-{key}"}), tuple(after))
        # Every configuration is read now: a mistake in the last stage is not found after weeks of the first.
        _ = stage.tasks
    except ConfigError as error:
        raise ConfigError(f"jobs.{key}.{error.field}", error.value, error.mend) from error
    return stage


def _in_order(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Each stage after those that it waits for, else as in the file."""
    sorter = TopologicalSorter({stage.key: stage.after for stage in stages})
    try:
        sorter.prepare()
    except CycleError as error:
        raise ConfigError("after", " -> ".join(error.args[1]), "Each of these jobs waits for the next one.") from error
    ordered: list[Stage] = []
    while sorter.is_active():
        ready = sorter.get_ready()
        ordered += [stage for stage in stages if stage.key in ready]
        sorter.done(*ready)
    return tuple(ordered)


def _refuse_twins(stages: Sequence[Stage]) -> None:
    """A stage may be called like a point of another one's sweep."""
    seen: set[str] = set()
    for stage in stages:
        for name in stage.task_names:
            if name in seen:
                raise ConfigError(f"jobs.{stage.key}", name, "Another job has that name: choose another key.")
            seen.add(name)


def _close(name: str, known: Iterable[str]) -> str | None:
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {found[0]!r}?" if found else None
