"""What runs in the pods of a RayJob, with a real Ray and without Kubernetes: the entry point, and the hooks that let it
leave. Pods are network namespaces of this machine, as its hosts are to the tests of Ray."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from astroclip_dist.store import Store
from astroclip_dist.train.event_log import read_events
from astroclip_dist.train.mlflow_run import read_history
from launchers.kubernetes.manifest import ARGUMENTS_VARIABLE, ENTRY_POINT
from tests.system import test_ray_nodes
from tests.system.hosts import Hosts, why_not
from tests.system.ray_nodes import RayNodes, wait_until
from tests.system.training_runs import undisturbed, write_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
]
PYTHON = [sys.executable, *ENTRY_POINT.split()[1:2]]
LEAVE = [*PYTHON, "launchers.kubernetes.leave", "120"]


@pytest.fixture(autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    uri = f"sqlite:///{tmp_path_factory.getbasetemp() / 'training.db'}"
    MlflowClient(uri).search_experiments()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        # Three starts of workers, on a machine that may have two cores and much else to do.
        patch.setattr(test_ray_nodes, "PATIENCE_S", 400.0)
        yield


@pytest.fixture
def short_folder() -> Iterator[Path]:
    # Not pytest's own: the path of a socket may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="astroclip-pod-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class EntryPoint:
    """That of a RayJob, in the pod of the head."""

    def __init__(self, cluster: RayNodes, arguments: list[str], log: Path) -> None:
        environment = {**cluster.environment, ARGUMENTS_VARIABLE: json.dumps(arguments)}
        self.log = log
        log.touch()
        command = [*PYTHON, "launchers.kubernetes.entrypoint"]
        self.process = cluster.hosts.start("head", command, environment, log)

    def wait_for(self, pattern: str) -> None:
        wait_until(lambda: re.search(pattern, self.log.read_text()), self.log.read_text)


def test_pods_that_go_let_the_training_save_first(
    short_folder: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    data, _ = undisturbed(tmp_path_factory.getbasetemp())
    run = tmp_path / "run"
    arguments = ["train", str(write_config(tmp_path, data, str(run))), "launcher=ray", "min_workers=1"]
    with Hosts(["head", "left", "right"]) as hosts:
        cluster = RayNodes(hosts, short_folder)
        cluster.start_head()
        cluster.start_node("left")
        cluster.start_node("right")

        # One node goes: its hook returns when no worker is left there, and the run goes on without it.
        first = EntryPoint(cluster, arguments, tmp_path / "first.log")
        first.wait_for("step 7/30")
        held = hosts.processes("left", "RayTrainWorker")
        _signal(held, signal.SIGSTOP)
        hook = hosts.start("right", LEAVE, cluster.environment, tmp_path / "hook.log")
        first.wait_for("asking the workers to leave: node")
        assert hook.poll() is None
        _signal(held, signal.SIGCONT)
        assert hook.wait(120) == 0, (tmp_path / "hook.log").read_text()
        assert not hosts.processes("right", "RayTrainWorker")
        first.wait_for("resumed at step .*, 1 ranks")

        # All pods go at once, as when Kueue takes them back.
        held = hosts.processes("left", "RayTrainWorker")
        _signal(held, signal.SIGSTOP)
        hooks = [
            hosts.start(name, LEAVE, cluster.environment, tmp_path / f"hook-{name}.log") for name in ("head", "left")
        ]
        first.wait_for("asking the workers to leave: (SIGTERM|.*drained)[^$]*$")
        _signal(held, signal.SIGCONT)
        assert [hook.wait(120) for hook in hooks] == [0, 0]
        assert first.process.wait(60) == 75, first.log.read_text()

        # The next start, with other pods.
        hosts.kill("left")
        cluster.start_node("left")
        second = EntryPoint(cluster, arguments, tmp_path / "second.log")
        assert second.process.wait(300) == 0, second.log.read_text()

    events = [event for event in read_events(Store(run)) if event["event"] in ("preempted", "resumed", "finished")]
    assert [event["event"] for event in events] == ["preempted", "resumed", "preempted", "resumed", "finished"]
    assert re.fullmatch(r"node [\d.]+ \(rank \d\) is drained", events[0]["reason"])
    # Nothing was done twice.
    assert events[1]["step"] == events[0]["step"]
    assert events[3]["step"] == events[2]["step"]
    expected = dict(read_history(Store(tmp_path_factory.getbasetemp() / "run"), "loss"))
    assert dict(read_history(Store(run), "loss")) == pytest.approx(expected, abs=1e-5, rel=1e-5)


def test_a_failure_that_no_restart_mends_stops_the_job(short_folder: Path, tmp_path: Path) -> None:
    """KubeRay starts FAILED jobs again, and not those that were STOPPED."""
    ray = str(Path(sys.executable).parent / "ray")
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-of-this-test",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": "127.0.0.1:6379",
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    }
    api = ["--address", "http://127.0.0.1:8265"]
    with Hosts(["head"]) as hosts:
        start = [ray, "start", "--head", "--block", "--port=6379", "--num-cpus=1", "--object-store-memory=100000000"]
        where = [f"--node-ip-address={hosts.addresses['head']}", f"--temp-dir={short_folder / 'ray'}"]
        log = tmp_path / "ray.log"
        hosts.start("head", [*start, *where], environment, log)
        wait_until(lambda: "Ray runtime started." in log.read_text(), log.read_text)

        def status_of(name: str, *arguments: str) -> str:
            """What Ray says of a job, submitted and followed as KubeRay's submitter does."""
            variables = {ARGUMENTS_VARIABLE: json.dumps(arguments)}
            runtime = json.dumps({"env_vars": variables})
            submit = [ray, "job", "submit", *api, "--no-wait", "--runtime-env-json", runtime, "--submission-id", name]
            hosts.run("head", [*submit, "--", *ENTRY_POINT.split()], environment)
            # The submitter must not fail, or KubeRay starts again for that.
            hosts.run("head", [ray, "job", "logs", *api, "--follow", name], environment)
            told = subprocess.run(
                [*hosts.within("head"), ray, "job", "status", *api, name],
                env={**environment},
                capture_output=True,
                text=True,
                timeout=60,
            )
            return told.stdout + told.stderr

        assert "succeeded" in status_of("good", "--version")
        assert "was stopped" in status_of("wrong", "config", "show", "/nowhere.yaml")


def _signal(processes: list, number: signal.Signals) -> None:
    assert processes
    for process in processes:
        process.send_signal(number)
