"""Several hosts on one machine: network namespaces with an address each, joined by a bridge that nobody else is on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_NETWORK = "10.77.0"
_BRIDGE = "bridge"
_NAMESPACES = Path("/run/netns")
_SEARCH = "/usr/bin:/usr/sbin:/bin:/sbin"


def why_no_hosts() -> str | None:
    """What keeps this machine from having such hosts; None where nothing does."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = f"probe-{os.getpid()}"
    try:
        ip("netns", "add", probe)
        ip("netns", "delete", probe)
    except OSError as error:
        return f"no network namespaces here: {error}"
    return None


class NetworkHosts:
    """Hosts by name. They share this machine's disks, and reach each other alone.

    Args:
        prefix: of the namespaces' names, which all of this machine share.

    Attributes:
        addresses: of each host.
    """

    def __init__(self, prefix: str, names: Sequence[str]) -> None:
        self._prefix = prefix
        self.addresses = {name: f"{_NETWORK}.{number}" for number, name in enumerate(names, 1)}

    def create(self) -> None:
        """Make those that are not there.

        Raises:
            OSError: what ``ip`` says.
        """
        bridge = self.namespace(_BRIDGE)
        if not (_NAMESPACES / bridge).exists():
            ip("netns", "add", bridge)
            ip("-n", bridge, "link", "add", "br0", "type", "bridge")
            ip("-n", bridge, "link", "set", "br0", "up")
        for name, address in self.addresses.items():
            inside = self.namespace(name)
            if (_NAMESPACES / inside).exists():
                continue
            ip("netns", "add", inside)
            # Named alike everywhere: GLOO_SOCKET_IFNAME has one value for all.
            ip("link", "add", "eth0", "netns", inside, "type", "veth", "peer", "name", name, "netns", bridge)
            ip("-n", bridge, "link", "set", name, "master", "br0", "up")
            ip("-n", inside, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", inside, "link", "set", "eth0", "up")
            ip("-n", inside, "link", "set", "lo", "up")

    def delete(self) -> None:
        """Remove all hosts of the prefix, also half-made ones."""
        for path in _NAMESPACES.glob(f"{self._prefix}*"):
            ip("netns", "delete", path.name)

    def within(self, name: str) -> list[str]:
        """What, before a command, makes it run on a host; the process becomes the command.

        ``ip netns exec`` would not do: it mounts /sys anew, without the control groups that slurmd looks for.
        """
        return ["nsenter", f"--net={_NAMESPACES / self.namespace(name)}"]

    def namespace(self, name: str) -> str:
        return self._prefix + name


def ip(*arguments: str) -> str:
    """What the ip command prints.

    Raises:
        OSError: there is none, or it fails.
    """
    program = shutil.which("ip", path=_SEARCH)
    if program is None:
        raise FileNotFoundError("the ip command is missing (Debian package iproute2)")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
