"""Datasets changed after their build, with hashes that agree again: only the contents can be wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from astroclip_dist.data.stored.manifest import MANIFEST_NAME, seal


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest's content."""
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    del manifest["manifest_sha256"]
    change(manifest)
    (folder / MANIFEST_NAME).write_bytes(seal(json.dumps(manifest, indent=2).encode()))


def agree(folder: Path, shard: str) -> None:
    """Make the manifest agree with the tar and the index of a shard as they are now."""

    def change(manifest: dict[str, Any]) -> None:
        (entry,) = (entry for entry in manifest["shards"] if entry["name"] == shard)
        for suffix, field in ((".tar", "sha256"), (".idx", "index_sha256")):
            entry[field] = hashlib.sha256((folder / f"{shard}{suffix}").read_bytes()).hexdigest()
        entry["bytes"] = (folder / f"{shard}.tar").stat().st_size

    edit_manifest(folder, change)
