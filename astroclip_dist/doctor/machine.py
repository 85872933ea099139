"""CPU, memory, and the limits that a container, a queue or a shell puts on them."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import psutil

from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.findings import Finding, fine, warning
from astroclip_dist.machine_limits import memory_limit, usable_cores
from astroclip_dist.runs.wording import amount

_SHARED_MEMORY = Path("/dev/shm")
# A rank has a socket for each other rank and storage connection, and a file for each shard that it writes or caches.
_FEW_FILES = 4096
# NCCL's buffers of eight ranks; Docker gives 64 MB.
_LITTLE_SHARED_MEMORY = 1_000_000_000
_BUSY = 1.5


def check_machine(context: Context) -> list[Finding]:
    """What is there, and what of it may be used."""
    return [*_processors(), *_memory(), *_open_files(), *_shared_memory()]


def _processors() -> list[Finding]:
    usable = usable_cores()
    load = os.getloadavg()[0]
    values = {"cores": os.cpu_count(), "usable_cores": usable, "load": round(load, 1)}
    limited = f" of {os.cpu_count()}" if usable < (os.cpu_count() or 1) else ""
    found = [fine(f"{usable:g}{limited} cores, load {load:.1f}", **values)]
    if load > _BUSY * (os.cpu_count() or 1):
        mend = "Others compute here: what is measured below is too low, and a training would be slow, too."
        found.append(warning(f"{load:.1f} processes want to run at once on {os.cpu_count()} cores", mend, **values))
    return found


def _memory() -> list[Finding]:
    memory = psutil.virtual_memory()
    limit = memory_limit()
    values = {"memory_bytes": memory.total, "available_bytes": memory.available, "limit_bytes": limit}
    about = f"{amount(memory.total)} of memory, {amount(memory.available)} available"
    if limit is not None and limit < memory.total:
        about += f"; this process and its fellows may have {amount(limit)} (cgroup)"
    swapped = psutil.swap_memory()
    if memory.available < 0.1 * memory.total:
        return [warning(about, "Free memory: workers that find none are killed.", **values)]
    if swapped.total and swapped.percent > 50:
        return [warning(f"{about}; half of the swap is in use", "Free memory: a rank that swaps stalls all.", **values)]
    return [fine(about, **values)]


def _open_files() -> list[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_words = f"{soft:,} open files" if soft != resource.RLIM_INFINITY else "any number of open files"
    if soft != resource.RLIM_INFINITY and soft < _FEW_FILES:
        more = "ulimit -n 65536" if hard == resource.RLIM_INFINITY or hard >= 65536 else "nofile in limits.conf"
        return [warning(f"a process may have {in_words}", f"Raise it before the start: {more}.", open_files=soft)]
    return [fine(f"a process may have {in_words}", open_files=soft)]


def _shared_memory() -> list[Finding]:
    if not _SHARED_MEMORY.is_dir():
        return [warning(f"no {_SHARED_MEMORY}", "Mount a tmpfs there: NCCL and Ray need it.")]
    space = os.statvfs(_SHARED_MEMORY)
    size, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    about = f"{_SHARED_MEMORY}: {amount(free)} free of {amount(size)}"
    if free < _LITTLE_SHARED_MEMORY:
        mend = "docker run --shm-size=8g or --ipc=host; on Kubernetes an emptyDir of medium Memory mounted there."
        return [warning(about, mend, size_bytes=size, free_bytes=free)]
    return [fine(about, size_bytes=size, free_bytes=free)]
