"""Trainings at a real Slurm that takes their nodes away: preempted, out of time, a node dead; none loses its state.

Nodes are network namespaces of this machine; dataset, run folder and MLflow's database lie on the disk that all share.
"""

from __future__ import annotations

import re
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.random_survey import write_random_survey
from tests.system.slurm_cluster import SlurmCluster, astroclip, small_slurm
from tests.system.training_runs import event, result, run_command, undisturbed, write_config
from tests.until import until

# Ray on two hosts starts some twenty processes, on a machine that may have two cores.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TWO_NODES = "nodes: 2\n"
TWO_WORKERS = "workers_per_node: 2\n"


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with small_slurm(3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    uri = f"sqlite:///{tmp_path_factory.getbasetemp() / 'training.db'}"
    MlflowClient(uri).search_experiments()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


@pytest.fixture(scope="module")
def on_two_nodes(tracking: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """The dataset, and the result of a run that nothing interrupts, with as many threads a worker as its jobs ask
    for: sums of float32 depend on them."""
    data, _ = undisturbed(tmp_path_factory.getbasetemp())
    folder = tmp_path_factory.mktemp("undisturbed")
    threads = {"OMP_NUM_THREADS": "1"}
    code, output = run_command(write_config(folder, data, str(folder / "run")), environment=threads)
    assert code == 0, output
    return data, result(folder / "run")


class Training:
    """A submitted training of the tiny model, that is at work."""

    def __init__(self, cluster: SlurmCluster, name: str, size: str, data: str, folder: Path, tracking: str) -> None:
        self.cluster, self.name, self.run = cluster, name, folder / "run"
        environment = {
            "GLOO_SOCKET_IFNAME": "eth0",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "MLFLOW_TRACKING_URI": tracking,
        }
        variables = "\n".join(f"  {key}: '{value}'" for key, value in environment.items())
        config = write_config(folder, data, str(self.run))
        text = f"config: {config}\n{size}time_limit: 30 min\nenvironment:\n{variables}\n"
        overrides = "override: {health: {preemption_deadline: 25 s}}\n"
        astroclip("jobs", "submit", cluster.write_job(name, text + overrides))

    @contextmanager
    def held(self, at: str) -> Iterator[None]:
        """From a line of its log on, its workers rest: what is to come must find it at work."""
        self.cluster.wait_for_log(self.name, at)
        title = "RayTrainWorker" if "Ray runs" in self.cluster.log(self.name) else "launchers.worker"
        workers = self.cluster.processes(self.cluster.id_of(self.name), title)
        assert len(workers) == 2, self.cluster.log(self.name)
        for worker in workers:
            worker.send_signal(signal.SIGSTOP)
        yield
        for worker in workers:
            if worker.is_running():
                worker.send_signal(signal.SIGCONT)

    def goes_on_as_if_nothing_had_happened(self, expected: dict[str, str], starts: int) -> None:
        told = self.cluster.wait_for_state(self.name, "succeeded")
        assert told["restarts"] == starts - 1
        assert result(self.run) == expected
        assert len(event(self.run, "resumed")) == starts - 1
        assert not event(self.run, "restarting")
        log = astroclip("jobs", "logs", self.name)
        assert re.findall(r"start (\d) of 101", log) == [str(start) for start in range(1, starts + 1)]
        until(lambda: not self.cluster.processes(told["id"]))
        assert not list((self.cluster.jobs / self.name).glob("*.token"))


def test_a_training_on_two_nodes_gives_way_to_an_urgent_job_and_goes_on(
    cluster: SlurmCluster, tracking: str, on_two_nodes: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    data, expected = on_two_nodes
    training = Training(cluster, "preempted", TWO_NODES + "queue: batch\n", data, tmp_path, tracking)
    with training.held("step 7/30"):
        assert cluster.status("preempted")["nodes"] == ["n1", "n2"]
        urgent = cluster.write_job("urgent", "command: [--version]\nqueue: urgent\ncpus_per_node: 8\n")
        astroclip("jobs", "submit", urgent, "launcher.setup=[sleep 5]", "launcher.exclude=[n2,n3]")
        cluster.wait_for_log("preempted", "SIGUSR2: the command is asked to leave")
    cluster.wait_for_state("preempted", "requeued")
    assert cluster.status("preempted")["reason"].endswith(")")
    cluster.wait_for_state("urgent", "running", "succeeded")
    cluster.start_at_once("preempted")
    training.goes_on_as_if_nothing_had_happened(expected, starts=2)
    [left] = event(training.run, "preempted")
    assert event(training.run, "resumed")[0]["step"] == left["step"]


def test_a_training_near_its_time_limit_saves_and_goes_on(
    cluster: SlurmCluster, tracking: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    data, expected = undisturbed(tmp_path_factory.getbasetemp())
    training = Training(cluster, "late", TWO_WORKERS, data, tmp_path, tracking)
    job = cluster.id_of("late")
    with training.held("step 7/30"):
        # Slurm counts in minutes, and looks twice a minute.
        ran = time.strptime(cluster.slurm("squeue", "-h", "-j", job, "-o", "%M").strip(), "%M:%S")
        cluster.slurm("scontrol", "update", f"JobId={job}", f"TimeLimit={ran.tm_min + 1}")
        cluster.wait_for_log("late", "SIGUSR2: the command is asked to leave")
    cluster.wait_for_state("late", "requeued")
    cluster.slurm("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    cluster.start_at_once("late")
    training.goes_on_as_if_nothing_had_happened(expected, starts=2)


def test_a_training_is_cancelled_with_all_of_its_processes(
    cluster: SlurmCluster, tracking: str, on_two_nodes: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    data, _ = on_two_nodes
    training = Training(cluster, "cancelled", TWO_NODES, data, tmp_path, tracking)
    cluster.wait_for_log("cancelled", "step 3/30")
    job = cluster.id_of("cancelled")
    assert cluster.processes(job)
    astroclip("jobs", "cancel", "cancelled")
    told = cluster.wait_for_state("cancelled", "cancelled")
    assert told["restarts"] == 0
    until(lambda: not cluster.processes(job))
    assert not event(training.run, "finished")


def test_a_training_that_may_have_fewer_nodes_runs_on_those_that_are_free(
    cluster: SlurmCluster, tracking: str, tmp_path: Path
) -> None:
    data = str(tmp_path / "data")
    write_random_survey(data, 100)
    others = ("scontrol", "update", "NodeName=n2,n3")
    cluster.slurm(*others, "State=DRAIN", "Reason=test")
    try:
        training = Training(cluster, "fewer", f"{TWO_NODES}min_nodes: 1\n", data, tmp_path, tracking)
        assert cluster.wait_for_state("fewer", "running")["nodes"] == ["n1"]
        cluster.wait_for_log("fewer", "step 1/30")
        # Ray's sockets are nobody else's, and go with the job.
        folders = list(Path("/tmp").glob(f"astroclip-{cluster.id_of('fewer')}-*"))
        assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}
        cluster.wait_for_state("fewer", "succeeded")
        assert not any(folder.exists() for folder in folders)
    finally:
        cluster.slurm(*others, "State=RESUME")
    assert event(training.run, "started")[0]["world_size"] == 1
    assert event(training.run, "finished")


def test_a_training_whose_node_dies_goes_on_on_others(
    cluster: SlurmCluster, tracking: str, on_two_nodes: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    data, expected = on_two_nodes
    training = Training(cluster, "bereft", TWO_NODES, data, tmp_path, tracking)
    with training.held("step 7/30"):
        # For good: the last test of this cluster.
        cluster.crash("n1")
    cluster.start_at_once("bereft")
    told = cluster.wait_for_state("bereft", "running")
    assert "n1" not in told["nodes"]
    training.goes_on_as_if_nothing_had_happened(expected, starts=2)
