"""The Ray cluster of RAY_ADDRESS: reachable, of our version, and whether its token is ours."""

from __future__ import annotations

import os
import socket
import sys
from urllib.parse import urlsplit

from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.findings import Finding, fine, problem, warning
from astroclip_dist.doctor.outcome import ask
from astroclip_dist.runs.wording import many

_CONNECT_S, _ANSWER_S = 4.0, 30.0
# In a process of its own: Ray ends the process, or waits for long, where a cluster refuses it.
_QUESTION = (
    "import sys; from ray._raylet import GcsClient; print(len(GcsClient(address=sys.argv[1]).get_all_node_info()))"
)


def check_ray(context: Context) -> list[Finding]:
    """Whether runs and jobs can use it from here."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return [fine("RAY_ADDRESS is not set: launcher=ray starts a Ray of its own", usable=False)]
    parts = urlsplit(address if "://" in address else f"//{address}")
    mend = "Correct RAY_ADDRESS (HEAD:6379), start Ray there (ops/ray_cluster.py), or unset it."
    try:
        host, port = parts.hostname, parts.port or 6379
    except ValueError:
        return [problem(f"RAY_ADDRESS={address} is no address", mend, usable=False)]
    if host is None or address == "auto":
        return [problem(f"RAY_ADDRESS={address} names no host", mend, usable=False)]
    try:
        socket.create_connection((host, port), _CONNECT_S).close()
    except OSError as error:
        return [problem(f"Ray at {address} does not answer: {error.strerror or error}", mend, usable=False)]
    if parts.scheme in ("http", "https", "ray"):
        return [fine(f"something listens at {address}; `astroclip jobs` asks it further", usable=True)]
    return [_cluster(f"{host}:{port}")]


def _cluster(address: str) -> Finding:
    answers, said = ask([sys.executable, "-c", _QUESTION, address], _ANSWER_S)
    if answers:
        nodes = int(said.splitlines()[-1])
        about = f"Ray at {address} lets us in: {many(nodes, 'node')}"
        if not nodes:
            return warning(about, "It may be starting; else look at its log, and at what joins it.", usable=False)
        return fine(about, usable=True, nodes=nodes)
    mend = (
        "Use the cluster's token (RAY_AUTH_MODE=token with RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token) and its version"
        " of Ray."
    )
    return problem(f"Ray at {address} refuses us: {said}", mend, usable=False)
