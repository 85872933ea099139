"""Hosts of a small Slurm on one machine: network namespaces with an address each, joined by a bridge of their own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from server_process import ServerError

CONTROL = "control"
_NETWORK = "10.77.0"
_SEARCH = "/usr/bin:/usr/sbin:/bin:/sbin"
_NAMESPACES = Path("/run/netns")


def why_no_hosts() -> str | None:
    """What keeps this machine from having such hosts; None where nothing does."""
    if os.geteuid() != 0:
        return "a small Slurm needs root, for its network namespaces"
    probe = f"slurm-probe-{os.getpid()}"
    try:
        _ip("netns", "add", probe)
        _ip("netns", "delete", probe)
    except ServerError as error:
        return f"no network namespaces here: {error}"
    return None


class SlurmHosts:
    """The controller's host and the nodes'. They share this machine's disks, and reach each other alone.

    Args:
        folder: of the cluster; names the namespaces.
        count: of nodes.

    Attributes:
        nodes: their names, n1, n2, ...
        addresses: of all hosts.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self._prefix = _prefix(folder)
        self.nodes = [f"n{number}" for number in range(1, count + 1)]
        self.addresses = {CONTROL: f"{_NETWORK}.250"}
        self.addresses |= {name: f"{_NETWORK}.{number}" for number, name in enumerate(self.nodes, 1)}

    def create(self) -> None:
        """Make the namespaces that are not there."""
        control = self._prefix + CONTROL
        if not (_NAMESPACES / control).exists():
            _ip("netns", "add", control)
            _ip("-n", control, "link", "set", "lo", "up")
            _ip("-n", control, "link", "add", "br0", "type", "bridge")
            _ip("-n", control, "addr", "add", f"{self.addresses[CONTROL]}/24", "dev", "br0")
            _ip("-n", control, "link", "set", "br0", "up")
        for name in self.nodes:
            inside = self._prefix + name
            if (_NAMESPACES / inside).exists():
                continue
            _ip("netns", "add", inside)
            # Named alike everywhere: GLOO_SOCKET_IFNAME has one value for all.
            _ip("link", "add", "eth0", "netns", inside, "type", "veth", "peer", "name", name, "netns", control)
            _ip("-n", control, "link", "set", name, "master", "br0", "up")
            _ip("-n", inside, "addr", "add", f"{self.addresses[name]}/24", "dev", "eth0")
            _ip("-n", inside, "link", "set", "eth0", "up")
            _ip("-n", inside, "link", "set", "lo", "up")

    def within(self, name: str, own_processes: bool = False) -> list[str]:
        """What, before a command, makes it run on a host.

        ``ip netns exec`` would not do: it mounts /sys anew, without the control groups that slurmd looks for.

        Args:
            own_processes: the command is the first of a process namespace, which ends with it and with this process.
        """
        network = ["nsenter", f"--net={_NAMESPACES / (self._prefix + name)}"]
        return network + (["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"] if own_processes else [])

    @staticmethod
    def delete(folder: Path) -> None:
        """Remove all namespaces of a cluster's folder."""
        for path in _NAMESPACES.glob(_prefix(folder) + "*"):
            _ip("netns", "delete", path.name)


def _prefix(folder: Path) -> str:
    return f"slurm-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}-"


def _ip(*arguments: str) -> None:
    program = shutil.which("ip", path=_SEARCH)
    if program is None:
        raise ServerError("the ip command is missing (Debian package iproute2)")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServerError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
