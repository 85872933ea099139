"""Local files for shards that are being written, and the removal of those whose writer was killed.

A writer holds a lock on its file, which the system lets go of when it dies.
"""

from __future__ import annotations

import fcntl
import re
import secrets
import tempfile
from pathlib import Path
from typing import BinaryIO

from astroclip_dist.errors import StorageError
from astroclip_dist.store import Store

# Beside a finished object: the storage client names its own unfinished writes in the same way, and lists none.
_IN_DATASET = re.compile(r"\w+-\d{6,}\.(tar|idx)#\d+")
_IN_TEMPORARY_FOLDER = re.compile(r"astroclip-\w+-\d{6,}-\d+\.tar")


def scratch_tar(store: Store, name: str) -> Path:
    """A new local file name to write a shard's tar under.

    In a local dataset it lies where the tar will be, so that it only has to be renamed; for object storage it lies in
    the temporary folder (TMPDIR).

    Raises:
        StorageError: the dataset's folder cannot be created.
    """
    number = secrets.randbelow(10**12)
    place = store.local_path(f"{name}.tar#{number}")
    if place is None:
        return Path(tempfile.gettempdir()) / f"astroclip-{name}-{number}.tar"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(str(place.parent), error.strerror, "Choose a folder that can be written.") from error
    return place


def open_locked(path: Path) -> BinaryIO:
    """Create a file and hold it. Raises OSError."""
    file = path.open("xb")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def remove_abandoned(store: Store) -> None:
    """Remove unfinished files that nobody holds, in a local dataset and in the temporary folder of this machine."""
    places = [(Path(tempfile.gettempdir()), _IN_TEMPORARY_FOLDER)]
    folder = store.local_path("")
    if folder is not None:
        places.append((folder, _IN_DATASET))
    for place, pattern in places:
        for path in place.iterdir() if place.is_dir() else ():
            if pattern.fullmatch(path.name) and not _is_held(path):
                path.unlink(missing_ok=True)


def _is_held(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, gone, or of another user
        return True
    return False
