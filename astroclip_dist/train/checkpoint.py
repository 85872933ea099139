"""Saving and finding the checkpoints of a run: complete or absent, the newest valid one first."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from astroclip_dist.data.order import Cursor
from astroclip_dist.errors import DataError, UserError
from astroclip_dist.parallel.engines import Engine
from astroclip_dist.store import MissingObjectError, Store
from astroclip_dist.train.checkpoint_storage import (
    MANIFEST_NAME,
    CheckpointReader,
    CheckpointWriter,
    remove_checkpoint,
)
from astroclip_dist.train.health.spikes import LossHistory

FOLDER = "checkpoints"
LATEST = f"{FOLDER}/latest"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a run is: what a checkpoint's manifest says beside the tensors."""

    step: int = 0
    cursor: Cursor = field(default_factory=Cursor)
    skipped_steps: int = 0
    losses: LossHistory = field(default_factory=LossHistory)

    def about(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "cursor": {"epoch": self.cursor.epoch, "step": self.cursor.step},
            "skipped_steps": self.skipped_steps,
            "losses": self.losses.about(),
        }

    @classmethod
    def read(cls, manifest: dict[str, Any]) -> Progress:
        losses = LossHistory(**manifest.get("losses", {}))
        return cls(manifest["step"], Cursor(**manifest["cursor"]), manifest["skipped_steps"], losses)


def checkpoint_name(step: int) -> str:
    return f"{FOLDER}/step-{step:09d}"


def save(
    run: Store, engine: Engine, progress: Progress, keep_last: int, beside: Mapping[str, Tensor] | None = None
) -> str:
    """Save the whole state; called by all ranks together. ``latest`` moves only when the checkpoint is complete.

    Args:
        beside: what the objective keeps outside of the engine's module, the same on all ranks.

    Returns:
        The checkpoint's name in the run folder.

    Raises:
        StorageError: on all ranks, when one of them cannot write.
    """
    name = checkpoint_name(progress.step)
    about = {**progress.about(), "world_size": engine.ranks.world_size}
    with _errors_of_ranks():
        dcp.save(_whole_state(engine, beside), storage_writer=CheckpointWriter(run.join(name), about))
    if engine.ranks.is_first:
        run.put(LATEST, json.dumps({"checkpoint": name}).encode())
        _prune(run, name, keep_last)
    return name


def restore(run: Store, engine: Engine, beside: Mapping[str, Tensor] | None = None) -> Progress | None:
    """Load the newest checkpoint that is whole; called by all ranks together.

    A damaged one is named in the log and the one before it is taken.

    Args:
        beside: as in ``save``; the tensors are written into.

    Returns:
        The progress it was saved at; None for a run without a checkpoint.

    Raises:
        DataError: checkpoints exist, and none is whole.
        StorageError: the storage does not answer; that says nothing about the checkpoint.
    """
    names = complete_checkpoints(run)
    for name in reversed(names):
        try:
            reader = CheckpointReader(run.join(name))
            with _errors_of_ranks():
                dcp.load(_whole_state(engine, beside), storage_reader=reader)
        except DataError as error:
            if engine.ranks.is_first:
                log.error("%s cannot be used, taking the one before: %s", run.locate(name), error)
            continue
        engine.loaded()
        return Progress.read(reader.manifest)
    if names:
        raise DataError(run.locate(FOLDER), f"{len(names)} checkpoints, none whole", "Restore one or start a new run.")
    return None


def read_tensors(checkpoint: Store, into: dict[str, Tensor]) -> None:
    """Fill tensors from a checkpoint in one process, whatever wrote it.

    Raises:
        DataError: the checkpoint is damaged.
        ValueError: it holds a tensor in another shape.
    """
    with torch.no_grad(), warnings.catch_warnings(), _errors_of_ranks():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(into, storage_reader=CheckpointReader(checkpoint), no_dist=True)


def resolve_checkpoint(url: str) -> tuple[Store, Store]:
    """A run's folder and one of its checkpoints, from the URL of either.

    Raises:
        DataError: no complete checkpoint there.
    """
    store = Store(url)
    if store.exists(MANIFEST_NAME):
        return Store(url.rstrip("/").rsplit("/", 2)[0]), store
    try:
        name = json.loads(store.read(LATEST))["checkpoint"]
    except MissingObjectError as error:
        raise DataError(
            store.url, "no complete checkpoint", "Give the URL of a run or of one of its checkpoints."
        ) from error
    return store, store.join(name)


def complete_checkpoints(run: Store) -> list[str]:
    """Names of the checkpoints whose manifest is there, oldest first."""
    ending = f"/{MANIFEST_NAME}"
    return sorted(entry.name.removesuffix(ending) for entry in run.list(FOLDER) if entry.name.endswith(ending))


def _whole_state(engine: Engine, beside: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    return engine.state() | {f"objective.{name}": tensor for name, tensor in (beside or {}).items()}


def _prune(run: Store, newest: str, keep_last: int) -> None:
    """Remove all but the newest complete checkpoints up to ``newest``: older ones, what interrupted saves left, and
    those after it, which a run that had to go back to an earlier one has abandoned."""
    kept = [name for name in complete_checkpoints(run) if name <= newest][-keep_last:]
    folders = {entry.name.rpartition("/")[0] for entry in run.list(FOLDER)} - {FOLDER}
    path = run.local_path(FOLDER)
    if path is not None:
        folders |= {f"{FOLDER}/{entry.name}" for entry in path.iterdir() if entry.is_dir()}
    for name in sorted(folders.difference(kept)):
        remove_checkpoint(run.join(name))


@contextmanager
def _errors_of_ranks() -> Iterator[None]:
    """Torch collects what the ranks raised in one BaseException, which passes every ``except Exception``: raise the
    first rank's error instead, of all errors one that the user can mend before any other."""
    try:
        yield
    except CheckpointException as collected:
        errors = [error for error, _ in collected.failures.values()]
        raise next((error for error in errors if isinstance(error, UserError)), errors[0]) from collected
