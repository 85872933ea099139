"""What a container, a queue or a shell leaves this process of its machine: by its affinity (``taskset``, Slurm's
cpusets) and by the cgroups that it is in."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> float:
    """Cores that this process may keep busy: those that it may run on, as far as its quota goes."""
    return min(len(os.sched_getaffinity(0)), cpu_quota() or float("inf"))


def threads_each(processes: int) -> int:
    """Threads for each of several processes that share what this one may use."""
    return max(1, int(usable_cores() // processes))


def memory_limit(root: Path = _CGROUPS) -> int | None:
    """Bytes that this process's cgroup may have, the tightest of it and those above it; None without a limit."""
    limits = [text for text in _read_all(root, "memory.max") if text != "max"]
    limits += _read_all(root, "memory.limit_in_bytes", "memory")
    # Version 1 writes a number near 2^63 where there is no limit.
    found = [int(text) for text in limits if int(text) < 1 << 60]
    return min(found, default=None)


def cpu_quota(root: Path = _CGROUPS) -> float | None:
    """Cores that this process's cgroup may keep busy; None without a limit."""
    found = []
    for text in _read_all(root, "cpu.max"):
        share, period = text.split()
        if share != "max":
            found.append(int(share) / int(period))
    for share, period in zip(
        _read_all(root, "cpu.cfs_quota_us", "cpu"), _read_all(root, "cpu.cfs_period_us", "cpu"), strict=False
    ):
        if int(share) > 0:
            found.append(int(share) / int(period))
    return min(found, default=None)


def _read_all(root: Path, name: str, controller: str = "") -> list[str]:
    """A file of this process's cgroup and of all above it (cgroups(7)); ``controller``: of version 1."""
    path = next(
        (
            line.split(":", 2)[2]
            for line in Path("/proc/self/cgroup").read_text().splitlines()
            if controller in line.split(":", 2)[1].split(",")
        ),
        "/",
    )
    folder = root / controller / path.lstrip("/")
    texts = []
    # In a container the path may name a cgroup that is not mounted: then the mounted root is the container's own.
    for place in (folder, *folder.parents):
        if place.is_relative_to(root) and (place / name).is_file():
            texts.append((place / name).read_text().strip())
    return texts
