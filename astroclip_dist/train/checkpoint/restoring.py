"""Loading checkpoints: the newest one that is whole."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from astroclip_dist.errors import DataError
from astroclip_dist.parallel.engines import Engine
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint.errors_of_ranks import errors_of_ranks
from astroclip_dist.train.checkpoint.folder import FOLDER, complete_checkpoints, point_latest
from astroclip_dist.train.checkpoint.progress import Progress
from astroclip_dist.train.checkpoint.reader import CheckpointReader

log = logging.getLogger(__name__)


def whole_state(engine: Engine, beside: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """All tensors of a checkpoint; ``beside`` is what the objective keeps outside of the engine's module."""
    return engine.state() | {f"objective.{name}": tensor for name, tensor in (beside or {}).items()}


def restore(run: Store, engine: Engine, beside: Mapping[str, Tensor] | None = None) -> Progress | None:
    """Load the newest checkpoint that is whole; called by all ranks together.

    A damaged one is named in the log and the one before it is taken; ``latest`` then names what was loaded.

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
            with errors_of_ranks():
                dcp.load(whole_state(engine, beside), storage_reader=reader)
        except DataError as error:
            if engine.ranks.is_first:
                log.error("%s cannot be used, taking the one before: %s", run.locate(name), error)
            continue
        engine.loaded()
        if engine.ranks.is_first:
            # A run that was killed before it could, or that has to go back: its weights are to be these.
            point_latest(run, name)
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
    with torch.no_grad(), warnings.catch_warnings(), errors_of_ranks():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(into, storage_reader=CheckpointReader(checkpoint), no_dist=True)
