"""Reading checkpoints: just the parts that a rank needs, for any world size and engine, each checked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from isal import isal_zlib
from torch import Tensor
from torch.distributed.checkpoint import LoadPlan, LoadPlanner, StorageReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem
from torch.futures import Future

from astroclip_dist.errors import DataError
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint.manifest import check_sizes, read_checkpoint_manifest

# Of one rank at a time: a part is one request, and most parts are small.
_REQUESTS = 8


class CheckpointReader(StorageReader):
    """Reads one checkpoint folder.

    Attributes:
        manifest: what the checkpoint says of itself.

    Raises:
        DataError: when a file is missing, or bytes differ from what was written.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.manifest = read_checkpoint_manifest(store)
        self._headers = {file["name"]: file["header"] for file in self.manifest["files"]}
        self._checked: set[str] = set()

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        tensors, places = {}, {}
        for name, tensor in self.manifest["tensors"].items():
            chunks = [
                ChunkStorageMetadata(torch.Size(chunk["offsets"]), torch.Size(chunk["sizes"]))
                for chunk in tensor["chunks"]
            ]
            properties = TensorProperties(dtype=getattr(torch, tensor["dtype"]))
            tensors[name] = TensorStorageMetadata(properties, torch.Size(tensor["shape"]), chunks)
            for described, chunk in zip(tensor["chunks"], chunks, strict=True):
                places[MetadataIndex(name, chunk.offsets)] = (described, properties.dtype)
        return Metadata(state_dict_metadata=dict(tensors), planner_data=None, storage_data=places)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._places = metadata.storage_data
        self.check_files()

    def check_files(self) -> None:
        """Raise DataError for a file that is missing or of another size than was written."""
        # Storages answer a range beyond an object's end each in their own way: files that were cut are found here.
        check_sizes(self._store, self.manifest, {entry.name: entry.size for entry in self._store.list()})

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        places = [self._places[MetadataIndex(item.storage_index.fqn, item.storage_index.offset)] for item in plan.items]

        def load(item: ReadItem, place: tuple[dict[str, Any], torch.dtype]) -> None:
            part = self._read_chunk(item.storage_index.fqn, *place)
            for axis, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                part = part.narrow(axis, start, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(part)
            planner.commit_tensor(item, target)

        self._check_headers(chunk["file"] for chunk, _ in places)
        with ThreadPoolExecutor(_REQUESTS) as pool:
            try:
                list(pool.map(load, plan.items, places))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def read(self, name: str) -> Tensor:
        """One whole tensor, on the CPU, whatever parts it was written in; by this process alone."""
        described = self.manifest["tensors"][name]
        dtype = getattr(torch, described["dtype"])
        tensor = torch.empty(described["shape"], dtype=dtype)
        self._check_headers(chunk["file"] for chunk in described["chunks"])
        for chunk in described["chunks"]:
            place = zip(chunk["offsets"], chunk["sizes"], strict=True)
            tensor[tuple(slice(first, first + size) for first, size in place)] = self._read_chunk(name, chunk, dtype)
        return tensor

    def _check_headers(self, files: Iterable[str]) -> None:
        """Nothing here reads a file by its header, but other tools do: a checkpoint whose header is damaged is not
        whole."""
        for name in sorted(set(files) - self._checked):
            header = self._headers[name]
            if isal_zlib.crc32(self._store.read_range(name, 0, header["bytes"])) != header["crc32"]:
                raise DataError(
                    f"{self._store.locate(name)}: header",
                    "crc32 differs from what was written",
                    "The checkpoint is damaged.",
                )
            self._checked.add(name)

    def _read_chunk(self, name: str, chunk: dict[str, Any], dtype: torch.dtype) -> Tensor:
        where = f"{self._store.locate(chunk['file'])}: {name}"
        data = self._store.read_range(chunk["file"], chunk["at"], chunk["at"] + chunk["bytes"])
        if isal_zlib.crc32(data) != chunk["crc32"]:
            raise DataError(where, "crc32 differs from what was written", "The checkpoint is damaged.")
        if not chunk["bytes"]:
            return torch.empty(chunk["sizes"], dtype=dtype)
        return torch.frombuffer(bytearray(data), dtype=dtype).view(chunk["sizes"])

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True
