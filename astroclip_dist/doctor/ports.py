"""Ports that a run, its metrics or a Ray cluster would listen on."""

from __future__ import annotations

import errno
import os
import socket

import psutil

from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.findings import Finding, fine, problem, warning

_RAY = {6379: "head", 8265: "dashboard", 10001: "clients"}


def check_ports(context: Context) -> list[Finding]:
    """Whether they are free, and if not, whose they are."""
    found = [_any_port()]
    master = os.environ.get("MASTER_PORT", "")
    if master.isdigit() and os.environ.get("RANK") in (None, "0"):
        found.append(_wanted(int(master), "MASTER_PORT", "Choose another, or end what listens there."))
    if context.config and (port := context.config.metrics.port):
        found.append(_wanted(port, "metrics.port", "Set metrics.port to a free one."))
    for port, use in _RAY.items():
        if not _can_listen(port) and not _is_ray(owner := _owner(port)):
            mend = f"`ray start --head` on this machine needs another port for its {use}, or that process ended."
            found.append(warning(f"port {port} (Ray's {use}) is taken by {_named(owner)}", mend, port=port))
    return found


def _any_port() -> Finding:
    try:
        with socket.create_server(("", 0)) as probe:
            return fine("ranks find a free port to meet at", port=probe.getsockname()[1])
    except OSError as error:
        mend = "Look at net.ipv4.ip_local_port_range, and at what holds so many sockets: ss -s."
        return problem(f"no free port: {error.strerror}", mend)


def _wanted(port: int, use: str, mend: str) -> Finding:
    if _can_listen(port):
        return fine(f"port {port} ({use}) is free", port=port)
    return problem(f"port {port} ({use}) is taken by {_named(_owner(port))}", mend, port=port)


def _can_listen(port: int) -> bool:
    try:
        with socket.create_server(("", port)):
            return True
    except OSError as error:
        return error.errno not in (errno.EADDRINUSE, errno.EACCES)


def _owner(port: int) -> psutil.Process | None:
    """Who listens there; None when that is not to be known (another user's process, another container)."""
    try:
        pids = {
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid
        }
        return psutil.Process(pids.pop()) if pids else None
    except psutil.Error:
        return None


def _is_ray(process: psutil.Process | None) -> bool:
    try:
        return process is not None and any("ray" in part for part in (process.name(), *process.cmdline()[:2]))
    except psutil.Error:
        return False


def _named(process: psutil.Process | None) -> str:
    try:
        return "somebody" if process is None else f"{process.name()} (process {process.pid})"
    except psutil.Error:
        return "somebody"
