"""A checkpoint's manifest: the JSON object that is written last and says what every byte of the others must be.

``files`` gives name, size, sha256, and length and crc32 of the header of each safetensors file; ``tensors`` gives
dtype, shape and the place and crc32 of each part. Headers and parts together are all bytes of a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from astroclip_dist.errors import DataError
from astroclip_dist.store import MissingObjectError, Store

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"


def seal(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as it is stored, with its format and a sha256 of itself."""
    complete = {"format_version": FORMAT_VERSION, **manifest}
    return json.dumps({**complete, "sha256": _digest(complete)}).encode()


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


def check_sizes(store: Store, manifest: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Compare the files that are there with those that the manifest names.

    Args:
        sizes: bytes of each object in the checkpoint's folder.

    Raises:
        DataError: one is missing or of another size.
    """
    for file in manifest["files"]:
        if sizes.get(file["name"]) != file["bytes"]:
            found = f"{sizes[file['name']]} bytes instead of {file['bytes']}" if file["name"] in sizes else "missing"
            raise DataError(store.locate(file["name"]), found, "The checkpoint is damaged.")


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
