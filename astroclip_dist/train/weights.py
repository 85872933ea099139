"""Weights for inference: one safetensors file with the configuration that it was trained with beside it."""

from __future__ import annotations

import safetensors.torch
import torch

from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import read_tensors, resolve_checkpoint
from astroclip_dist.train.checkpoint_storage import read_checkpoint_manifest
from astroclip_dist.train.run_folder import RUN_FILE

WEIGHTS_FILE = "weights/model.safetensors"
_PREFIX = "model."


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
