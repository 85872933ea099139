"""Saving and finding the checkpoints of a run: complete or absent, the newest valid one first."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from astroclip_dist.data.order import Cursor
from astroclip_dist.errors import DataError
from astroclip_dist.parallel.engines import Engine
from astroclip_dist.store import MissingObjectError, Store
from astroclip_dist.train.checkpoint_storage import (
    MANIFEST_NAME,
    CheckpointReader,
    CheckpointWriter,
    read_checkpoint_manifest,
)

FOLDER = "checkpoints"
LATEST = f"{FOLDER}/latest"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a run is: what a checkpoint's manifest says beside the tensors."""

    step: int = 0
    cursor: Cursor = field(default_factory=Cursor)
    skipped_steps: int = 0

    def about(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "cursor": {"epoch": self.cursor.epoch, "step": self.cursor.step},
            "skipped_steps": self.skipped_steps,
        }

    @classmethod
    def read(cls, manifest: dict[str, Any]) -> Progress:
        return cls(manifest["step"], Cursor(**manifest["cursor"]), manifest["skipped_steps"])


def checkpoint_name(step: int) -> str:
    return f"{FOLDER}/step-{step:09d}"


def save(run: Store, engine: Engine, progress: Progress, keep_last: int) -> str:
    """Save the whole state; called by all ranks together. ``latest`` moves only when the checkpoint is complete.

    Returns:
        The checkpoint's name in the run folder.
    """
    name = checkpoint_name(progress.step)
    about = {**progress.about(), "world_size": engine.ranks.world_size}
    dcp.save(engine.state(), storage_writer=CheckpointWriter(run.join(name), about))
    if engine.ranks.is_first:
        run.put(LATEST, json.dumps({"checkpoint": name}).encode())
        _prune(run, keep_last)
    return name


def restore(run: Store, engine: Engine) -> Progress | None:
    """Load the newest checkpoint that is whole; called by all ranks together.

    A damaged one is named in the log and the one before it is taken.

    Returns:
        The progress it was saved at; None for a run without a checkpoint.

    Raises:
        DataError: checkpoints exist, and none is whole.
    """
    names = complete_checkpoints(run)
    for name in reversed(names):
        folder = run.join(name)
        try:
            state = engine.state()
            dcp.load(state, storage_reader=CheckpointReader(folder))
        except (DataError, dcp.api.CheckpointException) as error:
            log.error("%s cannot be used, taking the one before: %s", folder.url, str(error).splitlines()[0])
            continue
        engine.loaded()
        return Progress.read(read_checkpoint_manifest(folder))
    if names:
        raise DataError(run.locate(FOLDER), f"{len(names)} checkpoints, none whole", "Restore one or start a new run.")
    return None


def load_weights(checkpoint: Store, module: nn.Module) -> dict[str, Any]:
    """Load the trained weights alone into a module, in one process, from a checkpoint of any engine or world size.

    Returns:
        The checkpoint's manifest.
    """
    read_tensors(checkpoint, {f"model.{name}": value for name, value in module.state_dict().items()})
    return read_checkpoint_manifest(checkpoint)


def read_tensors(checkpoint: Store, into: dict[str, Tensor]) -> None:
    """Fill tensors from a checkpoint in one process, whatever wrote it."""
    with torch.no_grad(), warnings.catch_warnings():
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


def _prune(run: Store, keep_last: int) -> None:
    """Remove all but the newest complete checkpoints, and what interrupted saves left before them.

    A checkpoint's manifest goes first: one that is half removed must not look complete.
    """
    kept = complete_checkpoints(run)[-keep_last:]
    oldest = kept[0] if kept else ""
    doomed = [e.name for e in run.list(FOLDER) if e.name != LATEST and e.name.rsplit("/", 1)[0] < oldest]
    run.delete(sorted(doomed, key=lambda name: not name.endswith(MANIFEST_NAME)))
