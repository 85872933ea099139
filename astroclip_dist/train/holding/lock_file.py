"""A file that one process at a time holds; the kernel lets go of it when the process dies."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from astroclip_dist.errors import StorageError

# Somebody who looks who holds the file has it for a moment; a holder writes down who it is in the moment after.
_PATIENCE_S = 1.0
_POLL_S = 0.05


class LockedError(Exception):
    """Another process holds the file.

    Args:
        content: what it has written there.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.content = content


@contextmanager
def hold_lock_file(path: Path, content: bytes) -> Iterator[None]:
    """Hold a file, created where it is not there, with a content for others to read; removed at the end.

    Raises:
        LockedError: another process holds it.
        StorageError: no such file can be made, or the file system has no locks.
    """
    deadline = time.monotonic() + _PATIENCE_S
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while (descriptor := _take(path)) is None:
            if time.monotonic() > deadline:
                raise LockedError(path.read_bytes() if path.exists() else b"")
            time.sleep(_POLL_S)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)
    except OSError as error:
        raise StorageError(
            path.as_uri(), error.strerror, "Choose a folder that can be written, on a file system with locks."
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # a file that is left, as on a disk that became read-only, holds nobody up
            path.unlink()
        os.close(descriptor)


def read_lock_file(path: Path) -> bytes | None:
    """What the process that holds a file has written there; None when nobody holds it."""
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StorageError(path.as_uri(), error.strerror, "Check the folder and its rights.") from error
    return None


def _take(path: Path) -> int | None:
    """The file's descriptor, held; None when another process holds it, or has just removed it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A holder removes its file while it still has it: what was opened before is not the file any more.
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.ENOENT):
            os.close(descriptor)
            raise
    os.close(descriptor)
    return None
