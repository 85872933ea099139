"""Ray on several hosts: one of them dies and comes back, another is drained; the run shrinks, grows and loses no data.

Hosts are network namespaces of this machine. The head has no room for workers, as in clusters where it is a small
machine; dataset, run folder and MLflow's database lie on the disk that all share.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from astroclip_dist.store import Store
from astroclip_dist.train.event_log import read_events
from astroclip_dist.train.mlflow_run import read_history
from tests.system import training_runs
from tests.system.hosts import why_not
from tests.system.ray_nodes import PATIENCE_S, RayNodes, ray_nodes
from tests.system.training_runs import undisturbed, write_config

# Three hosts, with five processes each before the first worker, start on a machine that may have two cores.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
]


@pytest.fixture(scope="module", autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    uri = f"sqlite:///{tmp_path_factory.getbasetemp() / 'training.db'}"
    MlflowClient(uri).search_experiments()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setattr(training_runs, "PATIENCE_S", PATIENCE_S)
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayNodes]:
    with ray_nodes() as cluster:
        yield cluster


def test_a_run_shrinks_when_a_node_dies_and_grows_when_it_is_back(
    cluster: RayNodes, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
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
    cluster: RayNodes, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
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
