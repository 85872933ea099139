"""Which rank writes which part of the state: torch's plan, made once in a run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, SavePlan, SavePlanner, StorageWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.checkpoint.utils import find_state_dict_object
from torch.futures import Future

from astroclip_dist.train.checkpoint.errors_of_ranks import errors_of_ranks
from astroclip_dist.train.checkpoint.file_image import FileImage, Part, WrittenFile


@dataclass(frozen=True)
class WritePlan:
    """What this rank writes of a state whose names and shapes never change in a run.

    Attributes:
        metadata: of the whole state, on the first rank.
    """

    indices: dict[Part, MetadataIndex]
    metadata: Metadata | None

    @classmethod
    def make(cls, state: dict[str, Tensor]) -> WritePlan:
        """Called by all ranks together. What several ranks hold is written by one of them, all by equal shares.

        Raises:
            TypeError: the state holds something else than tensors.
        """
        recorder = _Recorder()
        with errors_of_ranks():
            dcp.save(state, storage_writer=recorder, planner=DefaultSavePlanner(flatten_state_dict=False))
        return cls({_part(item): item.index for item in recorder.items}, recorder.metadata)

    def copy(self, state: dict[str, Tensor], image: FileImage) -> None:
        """Copy this rank's parts into the file's image; with a GPU the copies are queued on its current stream."""
        for part, target in image.views():
            held = find_state_dict_object(state, self.indices[part])
            target.copy_(held.detach(), non_blocking=True)

    def manifest(self, files: Iterable[WrittenFile]) -> dict[str, Any]:
        """``files`` and ``tensors`` of the manifest; on the first rank, from what all ranks wrote."""
        assert self.metadata is not None
        places = {key: (file.name, place) for file in files for key, place in file.places.items()}
        tensors = {}
        for name, tensor in sorted(self.metadata.state_dict_metadata.items()):
            assert isinstance(tensor, TensorStorageMetadata)
            chunks = []
            for chunk in tensor.chunks:
                file, place = places[name, tuple(chunk.offsets)]
                chunks.append(
                    {"offsets": list(chunk.offsets), "sizes": list(chunk.sizes), "file": file, **place._asdict()}
                )
            dtype = str(tensor.properties.dtype).removeprefix("torch.")
            tensors[name] = {"dtype": dtype, "shape": list(tensor.size), "chunks": chunks}
        described = [
            {
                "name": file.name,
                "bytes": file.bytes,
                "sha256": file.sha256,
                "header": {"bytes": file.header_bytes, "crc32": file.header_crc32},
            }
            for file in sorted(files, key=lambda file: file.name)
        ]
        return {"files": described, "tensors": tensors}


def _part(item: WriteItem) -> Part:
    if item.tensor_data is None:
        raise TypeError(f"{item.index.fqn}: a checkpoint holds tensors only; numbers belong into the manifest")
    chunk = item.tensor_data.chunk
    return Part(item.index.fqn, tuple(chunk.offsets), tuple(chunk.sizes), item.tensor_data.properties.dtype)


class _Recorder(StorageWriter):
    """Takes the plan that torch's checkpointing makes, and writes nothing."""

    def __init__(self) -> None:
        self.items: list[WriteItem] = []
        self.metadata: Metadata | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        self.items = plan.items
        nothing: Future[list[WriteResult]] = Future()
        nothing.set_result([])
        return nothing

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self.metadata = metadata

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True
