"""Where the checkpoints of a run lie, and which is the newest."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from astroclip_dist.errors import DataError, StorageError
from astroclip_dist.store import MissingObjectError, Store
from astroclip_dist.train.checkpoint.manifest import MANIFEST_NAME

FOLDER = "checkpoints"
LATEST = f"{FOLDER}/latest"
_NAME = re.compile(rf"{FOLDER}/step-\d{{9,}}")


def checkpoint_name(step: int) -> str:
    return f"{FOLDER}/step-{step:09d}"


def checkpoint_step(name: str) -> int:
    """The inverse of ``checkpoint_name``."""
    return int(name.rpartition("-")[2])


def complete_checkpoints(run: Store) -> list[str]:
    """Names of the checkpoints whose manifest is there, oldest first."""
    ending = f"/{MANIFEST_NAME}"
    return sorted(
        name
        for entry in run.list(FOLDER)
        if entry.name.endswith(ending) and _NAME.fullmatch(name := entry.name.removesuffix(ending))
    )


def checkpoint_files(run: Store) -> dict[str, dict[str, int]]:
    """All folders of checkpoints, complete or not, oldest first: size in bytes of each of their files."""
    folders: dict[str, dict[str, int]] = {}
    for entry in run.list(FOLDER):
        if match := _NAME.match(entry.name):
            folders.setdefault(match[0], {})[entry.name.removeprefix(f"{match[0]}/")] = entry.size
    path = run.local_path(FOLDER)
    if path is not None and path.is_dir():
        # Folders without any file that a listing shows: of saves that were killed early.
        for folder in path.iterdir():
            if folder.is_dir() and _NAME.fullmatch(name := f"{FOLDER}/{folder.name}"):
                folders.setdefault(name, {})
    return dict(sorted(folders.items()))


def point_latest(run: Store, name: str) -> None:
    """Make a checkpoint the one that is used when a run is named."""
    run.put(LATEST, json.dumps({"checkpoint": name}).encode())


def resolve_checkpoint(url: str) -> tuple[Store, Store]:
    """A run's folder and one of its checkpoints, from the URL of either.

    Raises:
        DataError: no complete checkpoint there.
    """
    store = Store(url)
    if store.exists(MANIFEST_NAME):
        return Store(store.url.rsplit("/", 2)[0]), store
    try:
        name = json.loads(store.read(LATEST))["checkpoint"]
        if not _NAME.fullmatch(name):
            raise ValueError(name)
    except MissingObjectError as error:
        raise DataError(
            store.url, "no complete checkpoint", "Give the URL of a run or of one of its checkpoints."
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            store.locate(LATEST), "damaged", "Give the URL of one of the run's checkpoints, or let the run go on."
        ) from error
    return store, store.join(name)


def clear_folder(folder: Store, keep: frozenset[str] = frozenset()) -> None:
    """Remove all files of a checkpoint's folder but those to keep, and the folder itself if nothing is kept.

    The manifest goes first: a checkpoint that is half removed must not look complete.

    Raises:
        StorageError: something in it cannot be removed.
    """
    names = [entry.name for entry in folder.list() if entry.name not in keep]
    folder.delete(sorted(names, key=lambda name: name != MANIFEST_NAME))
    path = folder.local_path("")
    if path is None or not path.exists():
        return
    # What no listing shows: the copies aside that killed writes left, and the folder itself.
    try:
        if not keep:
            shutil.rmtree(path)
            return
        for left in path.iterdir():
            if left.name not in keep:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    except OSError as error:
        where = Path(error.filename or path).as_uri()
        raise StorageError(where, error.strerror, "Check that it can be removed.") from error
