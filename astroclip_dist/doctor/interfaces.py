"""Network interfaces: those that ranks are told to use, and the address that they would tell each other."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path

import psutil

from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.findings import Finding, fine, problem, warning

_INFINIBAND = Path("/sys/class/infiniband")
_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")


def check_interfaces(context: Context) -> list[Finding]:
    """Names that do not exist, a host name that means loopback, InfiniBand ports that are down."""
    up = {name for name, about in psutil.net_if_stats().items() if about.isup}
    found = [finding for name in _VARIABLES if (finding := _named(name, os.environ.get(name), up))]
    return [*found, _own_address(context, sorted(up)), *_infiniband()]


def _named(variable: str, value: str | None, up: set[str]) -> Finding | None:
    """What a variable chooses. NCCL takes a list of prefixes, ``=`` for exact names, ``^`` for all others (NCCL User
    Guide, NCCL_SOCKET_IFNAME); gloo takes names."""
    if not value:
        return None
    names = [name for name in value.lstrip("^=").split(",") if name]
    if value.startswith("^"):
        chosen = {name for name in up if not name.startswith(tuple(names))}
    elif value.startswith("=") or not variable.startswith("NCCL"):
        chosen = up & set(names)
    else:
        chosen = {name for name in up if name.startswith(tuple(names))}
    if not chosen:
        mend = f"Set {variable} to one of: {', '.join(sorted(up - {'lo'}) or ['lo'])} (or unset it)."
        return problem(f"{variable}={value}: no such interface that is up", mend)
    return fine(f"{variable}={value}: {', '.join(sorted(chosen))}")


def _own_address(context: Context, up: list[str]) -> Finding:
    name = socket.gethostname()
    values = {"host": name, "interfaces": ", ".join(up)}
    mend = "Give the name its address in DNS or /etc/hosts, or set GLOO_SOCKET_IFNAME to the interface for ranks."
    try:
        address = socket.gethostbyname(name)
    except OSError:
        if os.environ.get("GLOO_SOCKET_IFNAME"):
            return fine(f"{name} has no address; GLOO_SOCKET_IFNAME says which interface is meant", **values)
        return problem(f"{name}, this machine's own name, has no address: gloo finds no interface", mend, **values)
    about = f"{name} is {address}; interfaces up: {', '.join(up)}"
    if (
        ipaddress.ip_address(address).is_loopback
        and context.uses_several_machines
        and not os.environ.get("GLOO_SOCKET_IFNAME")
    ):
        return warning(f"{about}: other machines would look for this one's ranks on themselves", mend, **values)
    return fine(about, address=address, **values)


def _infiniband() -> list[Finding]:
    found = []
    for state_file in sorted(_INFINIBAND.glob("*/ports/*/state")) if _INFINIBAND.is_dir() else ():
        port = f"InfiniBand {state_file.parts[-4]} port {state_file.parts[-2]}"
        state = state_file.read_text().split(":")[-1].strip()
        if state == "ACTIVE":
            rate = (state_file.parent / "rate").read_text().strip()
            found.append(fine(f"{port}: {rate}"))
        else:
            found.append(warning(f"{port} is {state.lower()}", "Check cable, switch and subnet manager: ibstat."))
    return found
