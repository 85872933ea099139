"""Reading a checkpoint from its first byte to its last, to see whether it is what was written."""

from __future__ import annotations

import hashlib
from typing import Any

from isal import isal_zlib

from astroclip_dist.errors import DataError
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint.manifest import MANIFEST_NAME, check_sizes, read_checkpoint_manifest

_BLOCK = 32 * 2**20


def verify(checkpoint: Store) -> list[str]:
    """Read all files of a checkpoint and compare sizes, sha256 and crc32 with its manifest, and that with its own hash.

    Memory is bounded whatever the files' size.

    Returns:
        The faults, in words; none for a checkpoint that is whole.

    Raises:
        StorageError: the storage does not answer; that says nothing about the checkpoint.
    """
    try:
        manifest = read_checkpoint_manifest(checkpoint)
    except DataError as error:
        return [f"{MANIFEST_NAME}: {error.value}"]
    sizes = {entry.name: entry.size for entry in checkpoint.list()}
    named = {file["name"] for file in manifest["files"]}
    faults = [f"{name}: not in the manifest" for name in sorted(sizes.keys() - named - {MANIFEST_NAME})]
    for file in manifest["files"]:
        try:
            check_sizes(checkpoint, {"files": [file]}, sizes)
        except DataError as error:
            faults.append(f"{file['name']}: {error.value}")
        else:
            faults += _damage(checkpoint, file, manifest["tensors"])
    return faults


def _damage(checkpoint: Store, file: dict[str, Any], tensors: dict[str, Any]) -> list[str]:
    """What differs in a file of the right size, by the tensors that are hit."""
    spans = [(0, file["header"]["bytes"], file["header"]["crc32"], "header")]
    for name, tensor in tensors.items():
        spans += [
            (chunk["at"], chunk["bytes"], chunk["crc32"], name)
            for chunk in tensor["chunks"]
            if chunk["file"] == file["name"]
        ]
    spans.sort()
    digest, crcs, number = hashlib.sha256(), [0] * len(spans), 0
    for first in range(0, file["bytes"], _BLOCK):
        block = checkpoint.read_range(file["name"], first, last := min(first + _BLOCK, file["bytes"]))
        digest.update(block)
        while number < len(spans) and spans[number][0] < last:
            at, size, _, _ = spans[number]
            crcs[number] = isal_zlib.crc32(block[max(at - first, 0) : at + size - first], crcs[number])
            if at + size > last:
                break
            number += 1
    faults = [
        f"{file['name']}: {name}: crc32 differs from what was written"
        for (_, _, expected, name), found in zip(spans, crcs, strict=True)
        if found != expected
    ]
    if digest.hexdigest() != file["sha256"] and not faults:
        faults.append(f"{file['name']}: sha256 differs from what was written")
    return faults
