"""Which checkpoints a run keeps."""

from __future__ import annotations

from dataclasses import dataclass

from astroclip_dist.config import RunConfig
from astroclip_dist.config.run import Checkpoint
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.errors import StorageError
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint.folder import clear_folder, point_latest
from astroclip_dist.train.checkpoint.inventory import StoredCheckpoint, describe
from astroclip_dist.train.checkpoint.manifest import read_checkpoint_manifest


@dataclass(frozen=True)
class Retention:
    """How many complete checkpoints are kept, and which.

    Attributes:
        last: the newest.
        every: those at multiples of so many steps; 0: none.
        best: those with the lowest score.
    """

    last: int
    every: int = 0
    best: int = 0

    @classmethod
    def of(cls, config: Checkpoint, steps: RunSteps) -> Retention:
        return cls(config.keep_last, steps.of(config.keep_every), config.keep_best)

    @classmethod
    def of_run(cls, run: Store, config: RunConfig) -> Retention:
        """Without the dataset: the length of an epoch is taken from the newest complete checkpoint."""
        complete = [checkpoint for checkpoint in describe(run) if checkpoint.is_complete]
        per_epoch = read_checkpoint_manifest(run.join(complete[-1].name))["steps_per_epoch"] if complete else 1
        return cls.of(config.checkpoint, RunSteps(0, per_epoch, config.batch.global_size))

    def keeps(self, complete: list[StoredCheckpoint]) -> set[str]:
        """Names of those to keep among the complete ones, given oldest first."""
        kept = complete[-self.last :]
        if self.every:
            kept += [checkpoint for checkpoint in complete if checkpoint.step % self.every == 0]
        if self.best:
            scored = [checkpoint for checkpoint in complete if checkpoint.score is not None]
            kept += sorted(scored, key=lambda checkpoint: (checkpoint.score, checkpoint.step))[: self.best]
        return {checkpoint.name for checkpoint in kept}


def surplus(run: Store, retention: Retention, newest: str | None = None) -> list[str]:
    """Names of the checkpoints that are not to be kept: complete ones too many, damaged ones, and what interrupted
    saves left. Only complete ones count, so that damaged ones never push out good ones.

    Args:
        newest: what the run has just saved; later ones are those of a run that had to go back, and abandoned them.
            Unless it is given, nothing later than the newest complete one is named: it may be a save under way.
    """
    found = describe(run)
    if newest is None:
        complete = [checkpoint.name for checkpoint in found if checkpoint.is_complete]
        if not complete:
            return []
        found = [checkpoint for checkpoint in found if checkpoint.name <= complete[-1]]
        newest = complete[-1]
    kept = retention.keeps([checkpoint for checkpoint in found if checkpoint.is_complete and checkpoint.name <= newest])
    return [checkpoint.name for checkpoint in found if checkpoint.name not in kept | {newest}]


def prune(run: Store, retention: Retention, newest: str | None = None) -> list[str]:
    """Remove what ``surplus`` names, and return it. Killed at any point it leaves complete checkpoints, and folders
    without a manifest.

    Raises:
        StorageError: one of them could not be removed; all others are.
    """
    names = surplus(run, retention, newest)
    if newest is None and names:
        # A run that was killed before it could: nothing may point to what is removed.
        point_latest(run, [checkpoint.name for checkpoint in describe(run) if checkpoint.is_complete][-1])
    failures = []
    for name in names:
        try:
            clear_folder(run.join(name))
        except StorageError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return names
