"""A real Ray of a head and two nodes on hosts of their own, and trainings that are typed on its head."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.system.hosts import Hosts
from tests.system.training_runs import Command

PATIENCE_S = 240.0


class RayNodes:
    """Ray on hosts: a head without room for workers, and nodes with room for one each.

    Args:
        folder: of Ray's files, its logs and its token.
    """

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        self.address = f"{hosts.addresses['head']}:6379"
        self.environment = {
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
            "GLOO_SOCKET_IFNAME": "eth0",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }
        (folder / "token").write_text("a-token-of-this-test")
        (folder / "token").chmod(0o600)
        self._ray = str(Path(sys.executable).parent / "ray")

    def start_head(self) -> None:
        temporary = f"--temp-dir={self.folder / 'head'}"
        self._start("head", ["--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false", temporary])

    def start_node(self, name: str) -> None:
        self._start(name, [f"--address={self.address}", "--num-cpus=1", f"--temp-dir={self.folder / name}"])

    def _start(self, name: str, arguments: list[str]) -> None:
        log = self.folder / f"{name}.log"
        node = [f"--node-ip-address={self.hosts.addresses[name]}", "--object-store-memory=100000000"]
        began = log.stat().st_size if log.exists() else 0
        self.hosts.start(
            name, [self._ray, "start", "--block", "--disable-usage-stats", *node, *arguments], self.environment, log
        )
        wait_until(lambda: "Ray runtime started." in log.read_text()[began:], lambda: log.read_text())

    def drain(self, name: str) -> None:
        """As a cloud's autoscaler does before it takes a machine away."""
        told = self.hosts.run("head", [sys.executable, "-c", _NODES], self.environment)
        node = json.loads(told.splitlines()[-1])[self.hosts.addresses[name]]
        why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot instance is reclaimed"]
        when = ["--deadline-remaining-seconds", "600"]
        command = [self._ray, "drain-node", "--address", self.address, "--node-id", node, *why, *when]
        self.hosts.run("head", command, self.environment)

    def train(self, config: Path) -> Command:
        """``astroclip train launcher=ray`` on the head, with one or two workers."""
        head = self.hosts.within("head")
        return Command(config, "launcher=ray", "min_workers=1", environment=self.environment, within=head)


_NODES = """
import json, ray
ray.init(logging_level="ERROR")
print(json.dumps({node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}))
"""


def wait_until(done: Callable[[], object], told: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, told()
        time.sleep(0.2)


@contextmanager
def ray_nodes() -> Iterator[RayNodes]:
    """With the nodes ``left`` and ``right``."""
    # Not pytest's own folder: the path of a socket may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="astroclip-ray-"))
    try:
        with Hosts(["head", "left", "right"]) as hosts:
            cluster = RayNodes(hosts, folder)
            cluster.start_head()
            cluster.start_node("left")
            cluster.start_node("right")
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)
