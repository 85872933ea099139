"""Local folders that a run writes: room, and how fast."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.findings import Finding, Values, fine, problem, warning
from astroclip_dist.runs.wording import amount

_LEAST_FREE, _LITTLE_FREE = 100_000_000, 10_000_000_000
_PIECE, _MOST_WRITTEN, _LONGEST_S = 1 << 20, 256 << 20, 1.0
_SLOW_BYTES_A_S = 50e6


def check_disks(context: Context) -> list[Finding]:
    """The folder for temporary files, the cache of shards, and local ones that a run would write."""
    folders = [("temporary files", Path(tempfile.gettempdir())), *context.folders]
    limit = context.config.reading.cache.limit if context.config and context.config.reading.cache else None
    return [_examine(what, folder, limit if what == "cache" else None) for what, folder in folders]


def _examine(what: str, folder: Path, wanted: int | None) -> Finding:
    """One folder; the nearest one above it where it is still to be made."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    where = f"{what} ({folder})"
    if not there.is_dir():
        return problem(f"{where}: {there} is a file", "Choose another folder, or remove the file.")
    space = os.statvfs(there)
    free = space.f_bavail * space.f_frsize
    values: Values = {"folder": str(folder), "free_bytes": free}
    if space.f_files and not space.f_favail:
        return problem(f"{where}: no room for another file (inodes)", "Remove files.", **values)
    if free < _LEAST_FREE:
        return problem(f"{where}: {amount(free)} free", "Free space, or choose a folder on another disk.", **values)
    try:
        rate = _write_rate(there, free)
    except OSError as error:
        mend = "Choose a folder that can be written, or mend its rights or its disk."
        return problem(f"{where} cannot be written: {error.strerror or error}", mend, **values)
    values["written_bytes_a_second"] = round(rate)
    about = f"{where}: {amount(free)} free, written at {amount(rate)}/s"
    in_use = _bytes_below(folder) if wanted is not None else 0
    if wanted is not None and free + in_use < wanted:
        mend = f"Lower reading.cache.limit ({amount(wanted)}), or choose a folder on a larger disk."
        return problem(f"{about}: less than the cache may take", mend, **values)
    if free < _LITTLE_FREE:
        return warning(about, "Free space: checkpoints, caches and logs grow.", **values)
    if rate < _SLOW_BYTES_A_S:
        return warning(about, "Choose a faster disk: caches and saves wait for it.", **values)
    return fine(about, **values)


def _write_rate(folder: Path, free: int) -> float:
    """Bytes a second that reach the disk; nothing stays."""
    piece = os.urandom(_PIECE)
    written, began = 0, time.monotonic()
    with tempfile.NamedTemporaryFile(prefix=".astroclip-doctor-", dir=folder) as file:
        while written < min(_MOST_WRITTEN, free // 4) and time.monotonic() - began < _LONGEST_S:
            file.write(piece)
            file.flush()
            # Each piece for itself: a system that keeps everything in memory at first would make the last one wait.
            os.fdatasync(file.fileno())
            written += _PIECE
    return written / (time.monotonic() - began)


def _bytes_below(folder: Path) -> int:
    """Only the folder itself and its first level: a cache has no deeper one, and a mistake may be a whole disk."""
    size = 0
    for file in (*folder.glob("*"), *folder.glob("*/*")):
        # A run that is at work takes out what it has used.
        with suppress(FileNotFoundError):
            about = file.stat()
            size += about.st_size if stat.S_ISREG(about.st_mode) else 0
    return size
