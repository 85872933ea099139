"""Jobs for Kubernetes as tests hand them over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launchers.jobs.spec import JobSpec
from launchers.jobs.task import Task, tasks_of

CONFIG = """
data: s3://galaxies/pairs
run: s3://runs/align
length: 100 steps
batch: {global_size: 64, lanes: 16}
optimizer: {lr: 1e-3}
tracking: {uri: "https://mlflow.site"}
health: {preemption_deadline: 90 s}
"""
KUBERNETES: dict[str, Any] = {"name": "kubernetes", "namespace": "survey"}
ASKED: dict[str, Any] = {
    "name": "align",
    "queue": "training",
    "image": "registry.site/astroclip:0.1.0",
    "cpus_per_node": 4,
    "memory_per_node": "16 GB",
}


def write_run_config(folder: Path, text: str = CONFIG) -> Path:
    path = folder / "align.yaml"
    path.write_text(text)
    return path


def job(config: Path | None, launcher: dict[str, Any] | None = None, **fields: Any) -> JobSpec:
    """A job file's content, checked; a training where there is a configuration."""
    what = {} if config is None else {"config": str(config)}
    return JobSpec.model_validate({**ASKED, **what, "launcher": {**KUBERNETES, **(launcher or {})}, **fields})


def task(config: Path | None, launcher: dict[str, Any] | None = None, **fields: Any) -> Task:
    """The only task of such a job."""
    [only] = tasks_of(job(config, launcher, **fields))
    return only
