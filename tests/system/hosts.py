"""Hosts on this machine (ops/network_hosts.py), and what tests do on them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from ops.network_hosts import NetworkHosts, ip, why_no_hosts

why_not = why_no_hosts


class Hosts(NetworkHosts):
    """Hosts by name, while within."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"astroclip-{os.getpid()}-", names)

    def __enter__(self) -> Self:
        self.create()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in self.addresses:
            self.kill(name)
        self.delete()

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], output: Path
    ) -> subprocess.Popen[bytes]:
        """Start a process on a host; ``output`` takes what it prints."""
        with output.open("ab") as file:
            return subprocess.Popen(
                [*self.within(name), *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )

    def run(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> str:
        """What a short command prints on a host."""
        done = subprocess.run(
            [*self.within(name), *command],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def processes(self, name: str, title: str = "") -> list[psutil.Process]:
        """Those that run on a host, with ``title`` in their command line."""
        found = []
        for pid in ip("netns", "pids", self.namespace(name)).split():
            try:
                process = psutil.Process(int(pid))
                if title in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def kill(self, name: str) -> None:
        """SIGKILL all of a host's processes, as when its power fails."""
        for _ in range(50):
            left = self.processes(name)
            if not left:
                return
            for process in left:
                try:
                    process.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.1)
        raise AssertionError(f"still on {name}: {left}")
