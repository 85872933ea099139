"""What checkpoints a run has, and whether they can be used, from one listing and their manifests."""

from __future__ import annotations

from dataclasses import dataclass

from astroclip_dist.errors import DataError
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint.folder import checkpoint_files, checkpoint_step
from astroclip_dist.train.checkpoint.manifest import MANIFEST_NAME, check_sizes, read_checkpoint_manifest


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint's folder.

    Attributes:
        name: in the run folder.
        bytes: of all its files.
        fault: why it cannot be used, in words; None for a complete one. ``verify`` looks deeper.
        score: mean loss of the steps since the save before; None where none was finite.
        saved_at: when its save began (UTC, ISO 8601).
        world_size: of the ranks that saved it.
    """

    name: str
    step: int
    bytes: int
    fault: str | None
    score: float | None = None
    saved_at: str | None = None
    world_size: int | None = None

    @property
    def is_complete(self) -> bool:
        return self.fault is None


def describe(run: Store) -> list[StoredCheckpoint]:
    """All checkpoints of a run, oldest first, also what interrupted saves left.

    Raises:
        StorageError: the storage does not answer.
    """
    return [_describe(run, name, sizes) for name, sizes in checkpoint_files(run).items()]


def _describe(run: Store, name: str, sizes: dict[str, int]) -> StoredCheckpoint:
    step, size = checkpoint_step(name), sum(sizes.values())
    if MANIFEST_NAME not in sizes:
        return StoredCheckpoint(name, step, size, "incomplete: its save is under way or was interrupted")
    folder = run.join(name)
    try:
        manifest = read_checkpoint_manifest(folder)
        check_sizes(folder, manifest, sizes)
    except DataError as error:
        return StoredCheckpoint(name, step, size, f"{error.field.rpartition('/')[2]}: {error.value}")
    return StoredCheckpoint(name, step, size, None, manifest["score"], manifest["saved_at"], manifest["world_size"])
