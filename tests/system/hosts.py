"""Several hosts on this machine: network namespaces, each with its own address, joined by a bridge."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

IP = shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")


def why_not() -> str | None:
    """What keeps this machine from having such hosts; None where nothing does."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if IP is None:
        return "network namespaces need the ip command (Debian package iproute2)"
    probe = f"astroclip-{os.getpid()}-probe"
    made = subprocess.run([IP, "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"no network namespaces here: {made.stderr.strip()}"
    subprocess.run([IP, "netns", "delete", probe], check=True)
    return None


class Hosts:
    """Hosts by name. They share this machine's disks, and reach each other alone.

    Attributes:
        addresses: of each host.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}

    def __enter__(self) -> Self:
        bridge = _namespace("bridge")
        _ip("netns", "add", bridge)
        _ip("-n", bridge, "link", "add", "br0", "type", "bridge")
        _ip("-n", bridge, "link", "set", "br0", "up")
        for name, address in self.addresses.items():
            inside = _namespace(name)
            _ip("netns", "add", inside)
            # Named alike everywhere: GLOO_SOCKET_IFNAME has one value for all.
            _ip("link", "add", "eth0", "netns", inside, "type", "veth", "peer", "name", name, "netns", bridge)
            _ip("-n", bridge, "link", "set", name, "master", "br0", "up")
            _ip("-n", inside, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", inside, "link", "set", "eth0", "up")
            _ip("-n", inside, "link", "set", "lo", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in self.addresses:
            self.kill(name)
        for name in (*self.addresses, "bridge"):
            _ip("netns", "delete", _namespace(name))

    def within(self, name: str) -> list[str]:
        """What, before a command, makes it run on a host; the process becomes the command."""
        assert IP is not None
        return [IP, "netns", "exec", _namespace(name)]

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
        for pid in _ip("netns", "pids", _namespace(name)).split():
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


def _namespace(name: str) -> str:
    return f"astroclip-{os.getpid()}-{name}"


def _ip(*arguments: str) -> str:
    assert IP is not None
    return subprocess.run([IP, *arguments], check=True, capture_output=True, text=True).stdout
