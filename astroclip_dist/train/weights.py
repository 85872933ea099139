"""Weights without what trained them: into a model for inference, and as one safetensors file for others."""

from __future__ import annotations

from typing import TypeVar

import safetensors.torch
import torch
from torch import nn

from astroclip_dist.errors import DataError
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import read_checkpoint_manifest, read_tensors, resolve_checkpoint
from astroclip_dist.train.run_folder import RUN_FILE

WEIGHTS_FILE = "weights/model.safetensors"
_PREFIX = "model."
M = TypeVar("M", bound=nn.Module)


def load_weights(module: M, checkpoint: Store, part: str = "", device: str | torch.device = "cpu") -> M:
    """Fill a module, which may be on the meta device, from a checkpoint of any engine or world size, for inference.

    Args:
        part: where it lies in the model that was trained, with a dot at the end (``teacher.encoder.``); empty: it is
            all of it.

    Raises:
        DataError: the checkpoint is damaged, or holds another model; names the first tensor that does not fit.
    """
    stored = read_checkpoint_manifest(checkpoint)["tensors"]
    module.to_empty(device=device).requires_grad_(False).eval()
    wanted = {f"{_PREFIX}{part}{name}": tensor for name, tensor in module.state_dict().items()}
    for name, tensor in wanted.items():
        found = f"shape {tuple(stored[name]['shape'])}" if name in stored else "missing"
        needed = f"shape {tuple(tensor.shape)}"
        if found != needed:
            raise DataError(
                f"{checkpoint.url}: {name}",
                found,
                f"It needs {needed} here: the dataset's layout is not the one that the model was trained on.",
            )
    read_tensors(checkpoint, wanted)
    return module


def export_weights(run: Store) -> None:
    """Write ``weights/`` of a run folder from its newest checkpoint, in one process, whatever its engine was."""
    _, checkpoint = resolve_checkpoint(run.url)
    manifest = read_checkpoint_manifest(checkpoint)
    state = {
        name: torch.empty(tensor["shape"], dtype=getattr(torch, tensor["dtype"]))
        for name, tensor in manifest["tensors"].items()
        if name.startswith(_PREFIX)
    }
    read_tensors(checkpoint, state)
    # One entry: safetensors writes several in random order, and the same weights are to be the same bytes.
    about = {"checkpoint": checkpoint.url.rsplit("/", 1)[-1]}
    weights = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}
    run.put("weights/run.yaml", run.read(RUN_FILE))
    run.put(WEIGHTS_FILE, safetensors.torch.save(weights, metadata=about))
