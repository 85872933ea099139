"""The checkpoints of a run: written in the background, complete or absent, whole or named as damaged.

Names are imported when they are asked for: what only lists and checks checkpoints does without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astroclip_dist.train.checkpoint.checkpointer import Checkpointer, Saved, save
    from astroclip_dist.train.checkpoint.folder import checkpoint_name, complete_checkpoints, resolve_checkpoint
    from astroclip_dist.train.checkpoint.inventory import StoredCheckpoint, describe
    from astroclip_dist.train.checkpoint.manifest import read_checkpoint_manifest
    from astroclip_dist.train.checkpoint.progress import Progress
    from astroclip_dist.train.checkpoint.reader import CheckpointReader
    from astroclip_dist.train.checkpoint.restoring import read_tensors, restore
    from astroclip_dist.train.checkpoint.retention import Retention, prune, surplus
    from astroclip_dist.train.checkpoint.verifying import verify

_HOMES = {
    "Checkpointer": "checkpointer",
    "Saved": "checkpointer",
    "save": "checkpointer",
    "checkpoint_name": "folder",
    "complete_checkpoints": "folder",
    "resolve_checkpoint": "folder",
    "StoredCheckpoint": "inventory",
    "describe": "inventory",
    "read_checkpoint_manifest": "manifest",
    "Progress": "progress",
    "CheckpointReader": "reader",
    "read_tensors": "restoring",
    "restore": "restoring",
    "Retention": "retention",
    "prune": "retention",
    "surplus": "retention",
    "verify": "verifying",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


__all__ = [
    "CheckpointReader",
    "Checkpointer",
    "Progress",
    "Retention",
    "Saved",
    "StoredCheckpoint",
    "checkpoint_name",
    "complete_checkpoints",
    "describe",
    "prune",
    "read_checkpoint_manifest",
    "read_tensors",
    "resolve_checkpoint",
    "restore",
    "save",
    "surplus",
    "verify",
]
