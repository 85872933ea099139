"""Models, or parts of them, with the weights that a run trained."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from astroclip_dist.errors import DataError
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import read_tensors
from astroclip_dist.train.checkpoint_storage import read_checkpoint_manifest

M = TypeVar("M", bound=nn.Module)


def with_weights(module: M, checkpoint: Store, part: str = "") -> M:
    """Fill a module that was built on the meta device from a checkpoint, on the CPU, ready to be looked at.

    Args:
        part: where it lies in the model that was trained, with a dot at the end; empty: it is all of it.

    Raises:
        DataError: the checkpoint is damaged, or holds another model; names the first tensor that does not fit.
    """
    stored = read_checkpoint_manifest(checkpoint)["tensors"]
    module.to_empty(device="cpu").requires_grad_(False).eval()
    wanted = {f"model.{part}{name}": value for name, value in module.state_dict().items()}
    for name, value in wanted.items():
        found = tuple(stored[name]["shape"]) if name in stored else "missing"
        if found != tuple(value.shape):
            raise DataError(
                f"{checkpoint.url}: {name}",
                found,
                f"{tuple(value.shape)} are needed: the dataset's layout is not the one that the model was trained on.",
            )
    read_tensors(checkpoint, wanted)
    return module
