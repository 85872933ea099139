"""The run folder: what a run writes beside its checkpoints, and the rule that one name is one run."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from astroclip_dist import __version__
from astroclip_dist.config import RunConfig, parse_config
from astroclip_dist.errors import ConfigError, DataError
from astroclip_dist.store import MissingObjectError, Store
from astroclip_dist.train.event_log import EVENTS_FILE, read_events

RUN_FILE = "run.yaml"
TRACKING_FILE = "tracking.json"
PROGRESS_FILE = "progress.json"
SPOOL_FOLDER = "tracking"
# What may differ when a run goes on: where it runs and how it is watched, not what it computes.
_MAY_CHANGE = (
    *("workers", "min_workers", "launcher", "device", "engine", "reading", "checkpoint", "tracking", "health"),
    "metrics",
)


def register(store: Store, config: RunConfig) -> bool:
    """Write ``run.yaml`` for a new run; for an old one check that it is the same, and write what this start may change.

    Of processes that register another configuration for the same new run at the same time one wins; who goes on with a
    run is to hold it.

    Returns:
        True when the run existed.

    Raises:
        ConfigError: the folder holds a run with another configuration; names the first difference.
    """
    text = yaml.safe_dump({"config": config.model_dump(mode="json"), "made_with": _versions()}, sort_keys=False)
    try:
        store.put(RUN_FILE, text.encode(), create_only=True)
    except FileExistsError:
        old = read_run_config(store)
        _refuse_other(store, old, config)
        if config != old:
            store.put(RUN_FILE, text.encode())
        return True
    return False


def withdraw(store: Store) -> None:
    """Undo ``register`` for a run that never began, so that its URL can be used with a corrected configuration."""
    if not store.exists(EVENTS_FILE) and not store.exists(TRACKING_FILE):
        store.delete([RUN_FILE])


def is_finished(store: Store) -> bool:
    """Whether a run has reached its end, and MLflow has all its records."""
    if not store.exists(EVENTS_FILE) or store.list(SPOOL_FOLDER):
        return False
    return any(event["event"] == "finished" for event in read_events(store))


def read_run_config(store: Store) -> RunConfig:
    """The resolved configuration that a run was last started with.

    Raises:
        ConfigError: no run there.
        DataError: the file is not one that ``register`` wrote.
    """
    try:
        config = yaml.safe_load(store.read(RUN_FILE))["config"]
    except MissingObjectError as error:
        raise ConfigError("run", store.url, "No run there (no run.yaml): check the URL.") from error
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise DataError(
            store.locate(RUN_FILE),
            f"damaged ({' '.join(str(error).split())})",
            "Restore it from a copy: MLflow has one among the run's artifacts.",
        ) from error
    return parse_config(yaml.safe_dump(config), store.locate(RUN_FILE))


def _refuse_other(store: Store, old: RunConfig, new: RunConfig) -> None:
    before, after = (
        flatten({key: value for key, value in config.model_dump(mode="json").items() if key not in _MAY_CHANGE})
        for config in (old, new)
    )
    differences = [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if differences:
        raise ConfigError(
            "run",
            store.url,
            "The folder holds a run with another configuration; choose another run URL, or undo: "
            + "; ".join(differences[:5]),
        )


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _versions() -> dict[str, str]:
    """What the run was made with: this package and its commit, and the libraries that decide its numbers."""
    found = {"astroclip-dist": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "deepspeed", "ray", "mlflow", "obstore"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    source = Path(__file__).resolve().parents[2]
    if (source / ".git").exists():
        commit = subprocess.run(
            ["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        if commit.returncode == 0:
            found["commit"] = commit.stdout.strip()
    return found
