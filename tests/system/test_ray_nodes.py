"""Ray on several hosts: one of them dies and comes back, another is drained; the run shrinks, grows and loses no data.

Hosts are network namespaces of this machine. The head has no room for workers, as in clusters where it is a small
machine; dataset, run folder and MLflow's database lie on the disk that all share.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from astroclip_dist.store import Store
from astroclip_dist.train.event_log import read_events
from astroclip_dist.train.mlflow_run import read_history
from tests.system import training_runs
from tests.system.hosts import Hosts, why_not
from tests.system.training_runs import Command, undisturbed, write_config

# Three hosts, with five processes each before the first worker, start on a machine that may have two cores.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
]
PATIENCE_S = 240.0


class Cluster:
    """Ray on hosts: a head without room for workers, and nodes with room for one each."""

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


@pytest.fixture(scope="module", autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    uri = f"sqlite:///{tmp_path_factory.getbasetemp() / 'training.db'}"
    MlflowClient(uri).search_experiments()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setattr(training_runs, "PATIENCE_S", PATIENCE_S)
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Not pytest's own folder: the path of a socket may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="astroclip-ray-"))
    try:
        with Hosts(["head", "left", "right"]) as hosts:
            cluster = Cluster(hosts, folder)
            cluster.start_head()
            cluster.start_node("left")
            cluster.start_node("right")
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_run_shrinks_when_a_node_dies_and_grows_when_it_is_back(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    data, _ = undisturbed(tmp_path_factory.getbasetemp())
    run = tmp_path / "run"
    training = cluster.train(write_config(tmp_path, data, str(run)))
    training.wait_for("Started training worker group")
    training.wait_for("step 7/30")
    cluster.hosts.kill("right")
    training.wait_for("restarting: rank")
    training.wait_for("resumed at step 5 of 30 .*, 1 ranks")
    training.wait_for("step 12/30")
    # Held, or it would be at its end before the node is back and seen.
    (worker,) = cluster.hosts.processes("left", "RayTrainWorker")
    worker.send_signal(signal.SIGSTOP)
    cluster.start_node("right")
    training.wait_for("asking the workers to leave: room for 2 workers instead of 1")
    worker.send_signal(signal.SIGCONT)
    training.wait_for("resumed at step .*, 2 ranks")
    assert training.finish() == 0, training.output

    changes = [entry["event"] for entry in _changes(run)]
    assert changes == ["started", "restarting", "resumed", "preempted", "resumed", "finished"], training.output
    started, restart, smaller, left, larger, _ = _changes(run)
    assert [start["world_size"] for start in (started, smaller, larger)] == [2, 1, 2]
    # What is seen first: that the process is gone, or that the other one has lost it.
    assert re.match(r"rank \d: its process died|rank \d stopped: another rank ended without a word", restart["cause"])
    assert restart["world_size"] == 1
    assert left["reason"] == "room for 2 workers instead of 1"
    # A node that dies costs the steps since the last save; growing costs none.
    assert smaller["step"] == 5
    assert larger["step"] == left["step"]
    _same_losses(run, tmp_path_factory.getbasetemp() / "run")


def test_a_run_leaves_a_drained_node_and_loses_no_step(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    data, _ = undisturbed(tmp_path_factory.getbasetemp())
    run = tmp_path / "run"
    training = cluster.train(write_config(tmp_path, data, str(run)))
    training.wait_for("Started training worker group")
    training.wait_for("step 7/30")
    for worker in cluster.hosts.processes("left", "RayTrainWorker"):
        worker.send_signal(signal.SIGSTOP)
    cluster.drain("right")
    training.wait_for("asking the workers to leave")
    for worker in cluster.hosts.processes("left", "RayTrainWorker"):
        worker.send_signal(signal.SIGCONT)
    training.wait_for("resumed at step .*, 1 ranks")
    assert training.finish() == 0, training.output

    changes = [entry["event"] for entry in _changes(run)]
    assert changes == ["started", "preempted", "resumed", "finished"], training.output
    _, left, resumed, _ = _changes(run)
    assert re.fullmatch(rf"node {cluster.hosts.addresses['right']} \(rank \d\) is drained", left["reason"])
    assert (resumed["step"], resumed["world_size"]) == (left["step"], 1)
    _same_losses(run, tmp_path_factory.getbasetemp() / "run")


def _changes(run: Path) -> list[dict[str, Any]]:
    """What happened to the run's workers; one that is left behind may write down why it stops, or not."""
    kinds = ("started", "restarting", "resumed", "preempted", "finished")
    return [event for event in read_events(Store(run)) if event["event"] in kinds]


def _same_losses(run: Path, undisturbed_run: Path) -> None:
    """Every step's loss is that of a run that nobody disturbed, but for the order of sums of float32."""
    expected, losses = (dict(read_history(Store(folder), "loss")) for folder in (undisturbed_run, run))
    assert losses.keys() == expected.keys()
    assert losses == pytest.approx(expected, abs=1e-5, rel=1e-5)
