"""Torch's distributed checkpoint on object storage without pickle: safetensors files and one JSON manifest.

Every rank writes the parts of the state that the planner gave it as one safetensors file, straight to storage. The
coordinator then writes ``manifest.json`` with the sha256 of every file and the place and crc32 of every part: it is the
last object of a checkpoint, and a folder without it is none. Reading fetches just the parts that a rank needs, for any
world size and engine, and checks each; the manifest carries a sha256 of itself. See docs/checkpoints.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from typing import Any

import safetensors.torch
import torch
from isal import isal_zlib
from torch import Tensor
from torch.distributed.checkpoint import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    StorageReader,
    StorageWriter,
)
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from astroclip_dist.errors import DataError
from astroclip_dist.store import MissingObjectError, Store

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"


class CheckpointWriter(StorageWriter):
    """Writes one checkpoint folder.

    Args:
        store: the checkpoint's own folder.
        about: what the manifest says beside the tensors (step, cursor, counters, ...), as JSON values.
    """

    def __init__(self, store: Store, about: dict[str, Any]) -> None:
        self._store, self._about = store, about

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        # A folder with files means a save that was interrupted, or a damaged checkpoint that was trained past again;
        # no rank writes before the coordinator has given out the plan.
        if is_coordinator:
            remove_checkpoint(self._store)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        # The name of each rank's file; only the global plan knows who is who.
        return [SavePlan(plan.items, number, plan.planner_data) for number, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        parts: dict[str, Tensor] = {}
        for item in plan.items:
            if item.type is WriteItemType.BYTE_IO:
                raise TypeError(f"{item.index.fqn}: a checkpoint holds tensors only; numbers belong into the manifest")
            part = planner.resolve_data(item)
            assert isinstance(part, Tensor)
            parts[_part_name(item.index)] = part.detach().cpu().contiguous()
        done: Future[list[WriteResult]] = Future()
        if not parts:
            done.set_result([])
            return done
        data = safetensors.torch.save(parts)
        name = f"rank-{plan.storage_data:05d}.safetensors"
        self._store.put(name, data)
        file = {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        places = _places(data)
        results = []
        for item in plan.items:
            first, last = places[_part_name(item.index)]
            where = {"file": file, "offset": first, "length": last - first, "crc32": isal_zlib.crc32(data[first:last])}
            results.append(WriteResult(item.index, last - first, where))
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        where = {result.index: result.storage_data for rank in results for result in rank}
        files = {place["file"]["name"]: place["file"] for place in where.values()}
        tensors = {}
        for name, tensor in sorted(metadata.state_dict_metadata.items()):
            assert isinstance(tensor, TensorStorageMetadata)
            chunks = []
            for chunk in tensor.chunks:
                place = where[MetadataIndex(name, chunk.offsets)]
                chunks.append(
                    {
                        "offsets": list(chunk.offsets),
                        "sizes": list(chunk.sizes),
                        "file": place["file"]["name"],
                        "at": place["offset"],
                        "bytes": place["length"],
                        "crc32": place["crc32"],
                    }
                )
            tensors[name] = {
                "dtype": str(tensor.properties.dtype).removeprefix("torch."),
                "shape": list(tensor.size),
                "chunks": chunks,
            }
        manifest = {
            "format_version": FORMAT_VERSION,
            **self._about,
            "files": sorted(files.values(), key=lambda file: file["name"]),
            "tensors": tensors,
        }
        self._store.put(MANIFEST_NAME, json.dumps({**manifest, "sha256": _digest(manifest)}).encode())

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


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
        sizes = {entry.name: entry.size for entry in self._store.list()}
        for file in self.manifest["files"]:
            if sizes.get(file["name"]) != file["bytes"]:
                found = (
                    f"{sizes[file['name']]} bytes instead of {file['bytes']}" if file["name"] in sizes else "missing"
                )
                raise DataError(self._store.locate(file["name"]), found, "The checkpoint is damaged.")

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for item in plan.items:
            chunk, dtype = self._places[MetadataIndex(item.storage_index.fqn, item.storage_index.offset)]
            part = self._read_chunk(item.storage_index.fqn, chunk, dtype)
            for axis, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                part = part.narrow(axis, start, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(part)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def read(self, name: str) -> Tensor:
        """One whole tensor, on the CPU, whatever parts it was written in; by this process alone."""
        described = self.manifest["tensors"][name]
        dtype = getattr(torch, described["dtype"])
        tensor = torch.empty(described["shape"], dtype=dtype)
        for chunk in described["chunks"]:
            place = zip(chunk["offsets"], chunk["sizes"], strict=True)
            tensor[tuple(slice(first, first + size) for first, size in place)] = self._read_chunk(name, chunk, dtype)
        return tensor

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


def read_checkpoint_manifest(store: Store) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Raises:
        DataError: no complete checkpoint there, a damaged manifest, or one of another format.
    """
    where = store.locate(MANIFEST_NAME)
    try:
        manifest = json.loads(store.read(MANIFEST_NAME))
    except MissingObjectError as error:
        raise DataError(where, "not there", "No checkpoint, or one whose save was interrupted.") from error
    except ValueError as error:
        raise DataError(where, "not JSON", "The checkpoint is damaged.") from error
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise DataError(where, "another format", f"This version reads checkpoints of format {FORMAT_VERSION}.")
    if manifest.pop("sha256", None) != _digest(manifest):
        raise DataError(where, "sha256 differs from what was written", "The checkpoint is damaged.")
    return manifest


def remove_checkpoint(folder: Store) -> None:
    """Remove a checkpoint's folder: its manifest first, for one that is half removed must not look complete."""
    folder.delete(sorted((entry.name for entry in folder.list()), key=lambda name: name != MANIFEST_NAME))
    path = folder.local_path("")
    if path is not None:
        # What no listing shows: the folder itself, and the copies aside that killed writes left.
        shutil.rmtree(path, ignore_errors=True)


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _part_name(index: MetadataIndex) -> str:
    return f"{index.fqn}@{','.join(map(str, index.offset or ()))}"


def _places(data: bytes) -> dict[str, tuple[int, int]]:
    """Byte range of each tensor in a safetensors file: 8 bytes of header length, a JSON header, then the data."""
    (header_length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + header_length])
    begin = 8 + header_length
    return {
        name: (begin + entry["data_offsets"][0], begin + entry["data_offsets"][1])
        for name, entry in header.items()
        if name != "__metadata__"
    }
