"""Locks of the kernel that one process takes and hands to another: they end with the last process that has them."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from astroclip_dist.errors import StorageError

_POLL_S = 0.02


def take_lock(path: Path, patience_s: float = 0.0) -> int | None:
    """Take the lock of a file, which is made where it is not there and is never removed.

    Args:
        patience_s: how long to try; whoever looks whether a lock is held has it for a moment.

    Returns:
        An open descriptor: the lock is held until it is closed here and in every process that inherited it. None when
        others hold the lock.

    Raises:
        StorageError: no such file can be made, or the file system has no locks.
    """
    deadline = time.monotonic() + patience_s
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _no_locks(path, error) from error
    while not _locked(path, descriptor, fcntl.LOCK_EX):
        if time.monotonic() >= deadline:
            os.close(descriptor)
            return None
        time.sleep(_POLL_S)
    return descriptor


def is_held(path: Path) -> bool:
    """Whether a process has the lock of a file.

    Raises:
        StorageError: as ``take_lock``.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _no_locks(path, error) from error
    free = _locked(path, descriptor, fcntl.LOCK_SH)
    os.close(descriptor)
    return not free


def _locked(path: Path, descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        os.close(descriptor)
        raise _no_locks(path, error) from error
    return True


def _no_locks(path: Path, error: OSError) -> StorageError:
    return StorageError(
        path.as_uri(), error.strerror, "Set ASTROCLIP_JOBS to a folder of yours, on a file system with locks."
    )
