"""Single files at a path or URL: put whole or not at all, and brought to this machine's disk piece by piece."""

from __future__ import annotations

from pathlib import Path

from astroclip_dist.errors import DataError, StorageError
from astroclip_dist.store import Store

_PIECE = 64 << 20


def split_url(url: str) -> tuple[str, str]:
    """The folder of a file's path or URL, and its name.

    Raises:
        DataError: it ends in ``/``.
    """
    folder, _, name = url.rpartition("/")
    if not name:
        raise DataError(url, "a folder", "Give the name of a file.")
    return (folder or ("/" if url.startswith("/") else ".")), name


def put_file(url: str, file: Path) -> None:
    """Store a finished local file under a path or URL, whole or not at all."""
    folder, name = split_url(url)
    Store(folder).put(name, file)


def local_file(url: str, folder: Path) -> Path:
    """A file or folder on this machine as it is; a file at a URL copied into a new folder, in pieces of 64 MiB.

    Raises:
        DataError: there is no such object.
        StorageError: the storage refuses, or the disk is full.
    """
    if "://" not in url:
        return Path(url)
    parent, name = split_url(url)
    store = Store(parent)
    on_disk = store.local_path(name)
    if on_disk is not None:
        return on_disk
    size = next((found.size for found in store.list() if found.name == name), None)
    if size is None:
        raise DataError(url, "no such object", "Check the URL.")
    folder.mkdir(parents=True)
    try:
        with (folder / name).open("xb") as file:
            for start in range(0, size, _PIECE):
                file.write(store.read_range(name, start, min(start + _PIECE, size)))
    except OSError as error:
        raise StorageError(f"temporary folder {folder}", error.strerror, "Set TMPDIR to one with more room.") from error
    return folder / name
