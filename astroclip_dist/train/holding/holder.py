"""The process that holds a run, as it tells others of itself."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from astroclip_dist.errors import UserError
from astroclip_dist.store import Store


class Holder(BaseModel):
    """A process on some machine.

    Attributes:
        since: UTC, for people to read; nothing is decided by it.
        machine: within which its pid means something: one start of one kernel, and the pid namespace.
        started: of the process, clock ticks after the start of the kernel; tells it from a later one with its pid.
    """

    model_config = ConfigDict(frozen=True)

    host: str
    pid: int
    launcher: str
    since: str
    machine: str
    started: int

    @classmethod
    def this_process(cls, launcher: str) -> Self:
        pid = os.getpid()
        started = _start(pid)
        assert started is not None
        return cls(
            host=socket.gethostname(),
            pid=pid,
            launcher=launcher,
            since=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            machine=_machine(),
            started=started,
        )

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """What a holder has written of itself; one that has not come to it yet, or never will, is unknown."""
        try:
            return cls.model_validate_json(content)
        except ValidationError:
            return cls(host="unknown host", pid=0, launcher="unknown", since="an unknown time", machine="", started=0)

    @property
    def is_here(self) -> bool:
        """Whether this process could see the holder."""
        return self.machine == _machine()

    @property
    def is_dead(self) -> bool:
        """Whether the holder is gone for certain; never true of a process on another machine."""
        return self.is_here and _start(self.pid) != self.started

    def __str__(self) -> str:
        return f"the {self.launcher} launcher on {self.host}, process {self.pid}, since {self.since}"


class HeldError(UserError):
    """Another process runs this run."""

    def __init__(self, run: Store, holder: Holder) -> None:
        super().__init__("run", f"{run.url} is held by {holder}", "Wait until it has ended, or stop it there first.")


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _start(pid: int) -> int | None:
    """When a process started, in clock ticks after the kernel's start (proc(5), stat, fields 3 and 22); None when it
    is no more, or dead and not yet buried by its parent."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field, the command's name in parentheses, may hold spaces and parentheses.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])
