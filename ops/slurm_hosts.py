"""The hosts of a small Slurm."""

from __future__ import annotations

import hashlib
from pathlib import Path

from network_hosts import NetworkHosts

CONTROL = "control"


class SlurmHosts(NetworkHosts):
    """The controller's host and the nodes'.

    Args:
        folder: of the cluster; names the namespaces.
        count: of nodes.

    Attributes:
        nodes: their names, n1, n2, ...
    """

    def __init__(self, folder: Path, count: int = 0) -> None:
        self.nodes = [f"n{number}" for number in range(1, count + 1)]
        super().__init__(f"slurm-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}-", [CONTROL, *self.nodes])
