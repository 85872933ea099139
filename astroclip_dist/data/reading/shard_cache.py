"""Copies of remote shards on a local disk, shared by all processes of a machine, never more than a limit.

A copy's name is the hash of its full URL and the object's tag, so a dataset that was built anew at the same URL never
meets old copies. Whoever reads a copy holds a shared lock on it, and locked copies are not removed. A download fills a
``.partial`` file, whose size is taken from the room beforehand, and is renamed when it is complete; the kernel drops a
dead process's locks, so its partial file is recognised and removed. Of what nobody reads, the copy that was used
longest ago goes first. Contents are checked against the shard's index whenever they are read (see ``reader``), not
here.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from astroclip_dist.data.reading.shard_bytes import Fetcher, FileBytes
from astroclip_dist.data.stored.dataset import Shard
from astroclip_dist.errors import ConfigError, StorageError

_POLL_S = 0.05
_WAIT_FOR_ROOM_S = 120.0


class ShardCache:
    """One process's access to the folder.

    Args:
        folder: made when it is not there.
        limit: bytes of all copies together.
        fetcher: does the downloads.
        wait_for_room_s: how long to wait while all copies are in use by others.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(
        self, folder: str | Path, limit: int, fetcher: Fetcher, wait_for_room_s: float = _WAIT_FOR_ROOM_S
    ) -> None:
        self.folder, self.limit = Path(folder), limit
        self._fetcher, self._wait_for_room_s = fetcher, wait_for_room_s
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "lock").touch()
        except OSError as error:
            raise ConfigError("reading.cache.folder", str(self.folder), f"{error.strerror}: choose another.") from error

    def open(self, shard: Shard) -> FileBytes:
        """The shard's copy, downloaded if need be; it stays at least as long as the result is referred to.

        Raises:
            MissingObjectError, CredentialsError, StorageError: the object cannot be read, or there is no room.
        """
        version = shard.store.version(shard.tar_name)
        name = hashlib.sha256(f"{shard.url}\n{version.tag}".encode()).hexdigest()
        try:
            return self._open(shard, version.size, self.folder / f"{name}.tar", self.folder / f"{name}.partial")
        except OSError as error:
            raise self._disk_error(error) from error

    def _open(self, shard: Shard, size: int, copy: Path, partial: Path) -> FileBytes:
        while True:
            if (found := _open_copy(copy, size)) is not None:
                return found
            with _locked_new_file(partial) as descriptor:
                # Who waited for another process's download finds its copy in the next round.
                if descriptor is not None and not copy.exists():
                    self._reserve(descriptor, size)
                    self._fetcher.download(shard.store, shard.tar_name, size, descriptor)
                    partial.rename(copy)
            if descriptor is None:
                time.sleep(_POLL_S)

    def _reserve(self, descriptor: int, size: int) -> None:
        """Give the file its full size, after removing as many unused copies as that takes."""
        give_up = time.monotonic() + self._wait_for_room_s
        while True:
            with _folder_lock(self.folder):
                if self._make_room(size):
                    os.posix_fallocate(descriptor, 0, size)
                    return
            if size > self.limit or time.monotonic() > give_up:
                raise StorageError(
                    f"reading.cache: {self.folder}",
                    f"no room for {size / 1e6:.0f} MB within {self.limit / 1e9:g} GB beside the copies in use",
                    "Raise reading.cache.limit: each process keeps the shards of its lanes' windows in use.",
                )
            time.sleep(_POLL_S)

    def _make_room(self, size: int) -> bool:
        files = []
        for path in (*self.folder.glob("*.tar"), *self.folder.glob("*.partial")):
            try:
                files.append((path.stat(), path))
            except FileNotFoundError:
                continue
        used = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
            if used + size <= self.limit:
                break
            # An empty partial file belongs to a process that waits for room, as this one does.
            if stat.st_size and _remove_unused(path):
                used -= stat.st_size
        return used + size <= self.limit

    def _disk_error(self, error: OSError) -> StorageError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        mend = "Lower reading.cache.limit, or free space." if full else "Choose a disk that works."
        return StorageError(f"reading.cache: {self.folder}", error.strerror, mend)


def _open_copy(path: Path, size: int) -> FileBytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.utime(path)
        if os.fstat(descriptor).st_size == size and os.path.samestat(os.fstat(descriptor), path.stat()):
            return FileBytes(descriptor, path)
        path.unlink()
    except (BlockingIOError, FileNotFoundError):
        pass  # it is being removed at this moment
    os.close(descriptor)
    return None


@contextmanager
def _locked_new_file(path: Path) -> Iterator[int | None]:
    """A file that only this process writes, emptied; None while another one does. Removed if it is still there."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(descriptor), path.stat())
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            yield None
            return
        os.ftruncate(descriptor, 0)
        try:
            yield descriptor
        finally:
            # Renamed meanwhile, the name may be another process's next file.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                path.unlink()
    finally:
        os.close(descriptor)


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / "lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_unused(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
