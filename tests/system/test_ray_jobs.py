"""Jobs at real Ray clusters with token authentication: one of this machine alone, and one of two nodes and a head.

On the hosts (network namespaces; root) the jobs are submitted from a host that is not part of the cluster.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow import MlflowClient

import tests.system.ray_cluster as ray_cluster
from launchers.ray.job_client import RayJobsClient
from launchers.ray.job_request import submission_id
from tests.random_survey import write_random_survey
from tests.system.conftest import run_ops
from tests.system.hosts import Hosts, why_not
from tests.system.ray_cluster import Desk, Follower, RayOnHosts
from tests.system.training_runs import CONFIG, STEPS, event, result, run_command, write_config

on_hosts = pytest.mark.skipif(bool(why_not()), reason=str(why_not()))


def write_job(folder: Path, address: str, **values: Any) -> Path:
    """A job file; a training of ``run.yaml`` beside it, unless it says otherwise."""
    what = {} if "command" in values else {"config": "run.yaml"}
    path = folder / f"{values.get('name', 'clip')}.yaml"
    path.write_text(yaml.safe_dump({"name": "clip", "launcher": {"name": "ray", "address": address}, **what, **values}))
    return path


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path: that of a socket may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def when_saved(run: Path, step: int) -> None:
    """Return when a run has saved so many steps: by its own events, for a log that is followed is seconds late."""
    deadline = time.monotonic() + ray_cluster.PATIENCE_S
    while not (run / "events.jsonl").exists() or all(entry["step"] < step for entry in event(run, "saved")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def free_block(count: int) -> int:
    """The first of so many ports in a row, above those of Ray's workers, that nobody listens on."""
    for first in range(20100 + os.getpid() % 500 * 10, 32000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for number, one in enumerate(sockets):
                one.bind(("0.0.0.0", first + number))
            return first
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
    raise AssertionError("no free ports")


def test_a_cluster_of_this_machine_takes_whoever_has_its_token(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = free_block(9)
    sizes = ["--cpus", "1", "--first-port", str(ports), "--dashboard-port", str(ports + 8)]
    with monkeypatch.context() as another:
        another.setenv("RAY_AUTH_TOKEN", "of-another-cluster")
        run_ops("ray_cluster.py", "start", short, *sizes)
    try:
        address = f"http://127.0.0.1:{ports + 8}"
        token = Path(run_ops("ray_cluster.py", "token", short))
        assert token.stat().st_mode & 0o777 == 0o600
        desk = Desk(tmp_path, {"RAY_AUTH_TOKEN_PATH": str(token)})
        job = write_job(tmp_path, address, name="hello", command=["--version"])

        # Nothing is handed over without the token, and the record of what was not is gone, too.
        nobody = Desk(tmp_path, {"RAY_AUTH_TOKEN_PATH": "", "HOME": str(tmp_path)})
        stranger = Desk(tmp_path, {"RAY_AUTH_TOKEN": "made-up"})
        assert re.fullmatch(
            rf"error: RAY_AUTH_TOKEN: no token\. {address} wants one: set .*\n", nobody.jobs("submit", job, code=2)
        )
        refused = stranger.jobs("submit", job, code=2)
        assert refused.startswith(f"error: RAY_AUTH_TOKEN: wrong token. {address} refuses it: set RAY_AUTH_TOKEN_PATH")
        assert "made-up" not in refused
        assert json.loads(desk.jobs("list", "--json")) == []

        # Killed when the cluster has the job, and before the answer was written down.
        killed = subprocess.run(
            [sys.executable, "-c", _KILLED_SUBMIT, str(job)], env={**os.environ, **desk.environment}, timeout=60
        )
        assert killed.returncode == -signal.SIGKILL
        [answer] = json.loads(desk.jobs("submit", job, "--json"))
        assert (answer["new"], answer["attempt"]) == (False, 0)
        done = desk.wait_for("hello", "succeeded")
        assert done["id"] == answer["id"]
        assert f"astroclip {version('astroclip-dist')}" in desk.jobs("logs", "hello").splitlines()

        # What the nodes lack is named, and what the cluster lacks is refused before anything is handed over.
        needy = write_job(tmp_path, address, name="needy", command=["--version"], secrets=["A_SECRET"])
        desk.jobs("submit", needy)
        large = write_job(tmp_path, address, name="large", command=["--version"], gpus_per_node=8)
        assert "gpus_per_node: 1 CPU, 8 GPU. No node has that" in desk.jobs("submit", large, code=2)
        # A job that was not submitted by this command, and has its id.
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        RayJobsClient(address).submit({"submission_id": submission_id("taken", 0), "entrypoint": "true"})
        taken = write_job(tmp_path, address, name="taken", command=["--version"])
        assert "Another job has that id" in desk.jobs("submit", taken, code=2)
        state = desk.job("needy")
        while state["state"] in ("pending", "running"):
            time.sleep(0.5)
            state = desk.job("needy")
        assert (state["state"], state["restarts"]) == ("failed", 0)
        assert "exit code 2: error: secrets: A_SECRET. Not in the environment of Ray on" in state["reason"]
        assert [entry["name"] for entry in json.loads(desk.jobs("list", "--json"))] == ["hello", "needy"]
    finally:
        before = _processes_with(str(short))
        assert before
        assert run_ops("ray_cluster.py", "stop", short) == "stopped"
        assert not _processes_with(str(short))
    assert run_ops("ray_cluster.py", "stop", short) == "was not running"
    gone = desk.jobs("submit", job, "environment={A: b}", code=1)
    assert f"error: launcher.address: {address}. No Ray dashboard answers there" in gone


_KILLED_SUBMIT = """
import os, signal, sys
from astroclip_dist.cli import main
from launchers.ray.queue import RayQueue

submit = RayQueue.submit

def submit_and_die(self, *arguments):
    submit(self, *arguments)
    os.kill(os.getpid(), signal.SIGKILL)

RayQueue.submit = submit_and_die
main(["jobs", "submit", sys.argv[1]])
"""


def _processes_with(folder: str) -> list[str]:
    """Command lines, of other programs than this one, that name a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if folder in line and "pytest" not in line:
            found.append(line)
    return found


@pytest.mark.slow
def test_a_job_that_is_out_of_time_says_so(tmp_path: Path) -> None:
    write_random_survey(str(tmp_path / "data"), 100)
    config = write_config(tmp_path, (tmp_path / "data").as_uri(), str(tmp_path / "run"))
    limits = ["--max-restarts=5", "--stop-within=60", "--time-limit=3"]
    job = subprocess.run(
        [sys.executable, "-m", "launchers.ray.job", *limits, "--", "train", str(config), "length=4000 steps"],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert job.returncode == 75, job.stdout + job.stderr
    assert job.stdout.splitlines()[-1] == "out of time (3 s); submit the job again, and it goes on"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_waits_for_room_without_work_and_a_killed_one_finds_its_own(short: Path, tmp_path: Path) -> None:
    ports = free_block(9)
    sizes = ["--cpus", "1", "--first-port", str(ports), "--dashboard-port", str(ports + 8)]
    run_ops("ray_cluster.py", "start", short, *sizes)
    try:
        desk = Desk(tmp_path, {"RAY_AUTH_TOKEN_PATH": run_ops("ray_cluster.py", "token", short)})
        write_random_survey(str(tmp_path / "data"), 100)
        database = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}
        runs: dict[str, Path] = {}
        for name, steps in (("first", 100_000), ("second", 3)):
            runs[name] = tmp_path / name / "run"
            runs[name].parent.mkdir()
            text = CONFIG.replace("30 steps", f"{steps} steps")
            write_config(runs[name].parent, (tmp_path / "data").as_uri(), str(runs[name]), text)
            about = {"environment": database, "max_restarts": 1}
            desk.jobs("submit", write_job(runs[name].parent, f"http://127.0.0.1:{ports + 8}", name=name, **about))
            if name == "first":
                when_saved(runs[name], 5)
        deadline = time.monotonic() + ray_cluster.PATIENCE_S
        while desk.job("second")["reason"] is None or "Deciding NOT to start" not in desk.jobs("logs", "second"):
            assert time.monotonic() < deadline
        assert desk.job("second")["reason"] == "RUNNING without workers: they start, or wait for room"
        assert desk.job("first")["reason"] is None
        *_, waiting = _of_node(short, "ray::TrainController")
        before = sum(waiting.cpu_times()[:2])
        time.sleep(5)
        assert sum(waiting.cpu_times()[:2]) - before < 0.5
        desk.jobs("cancel", "second")
        assert "left while the run had no workers" in desk.jobs("logs", "second")
        desk.jobs("submit", tmp_path / "second/second.yaml")

        command, *_ = _of_node(short, "astroclip_dist.cli train")
        command.kill()
        while not event(runs["first"], "resumed"):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert "Deciding NOT to start" not in desk.jobs("logs", "first")
        desk.jobs("cancel", "first")
        assert desk.wait_for("second", "succeeded")["restarts"] == 0
    finally:
        run_ops("ray_cluster.py", "stop", short)


def _of_node(folder: Path, words: str) -> list[psutil.Process]:
    """Processes of the node in a folder with these words in their command lines, oldest first."""
    node = psutil.Process(json.loads((folder / "ray.json").read_text())["pid"])
    found = [child for child in node.children(recursive=True) if words in " ".join(child.cmdline())]
    return sorted(found, key=lambda process: process.create_time())


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.getbasetemp() / 'training.db'}"
    MlflowClient(uri).search_experiments()
    return uri


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayOnHosts]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    try:
        with Hosts(["head", "left", "right", "desk"]) as hosts:
            cluster = RayOnHosts(hosts, folder, {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})
            assert cluster.start_head().splitlines()[0] == f"address: {cluster.address}"
            for name in ("left", "right"):
                assert "has joined" in cluster.join(name)
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def desk(cluster: RayOnHosts, tmp_path: Path) -> Desk:
    return Desk(tmp_path, {"RAY_AUTH_TOKEN_PATH": str(cluster.token)}, cluster.hosts.within("desk"))


@pytest.fixture(scope="module")
def reference(database: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """The dataset, and the result of a training on this machine that nobody disturbs."""
    folder = tmp_path_factory.mktemp("reference")
    write_random_survey(str(folder / "data"), 100)
    data = (folder / "data").as_uri()
    # As on the cluster's nodes: sums in other numbers of threads differ in the last bit.
    threads = {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": database}
    code, output = run_command(write_config(folder, data, str(folder / "run")), environment=threads)
    assert code == 0, output
    return data, result(folder / "run")


@dataclass(frozen=True)
class Training:
    """A job that has saved some steps, and whose log is followed.

    Attributes:
        job: its file.
        expected: what is left of the same training when nobody disturbs it.
    """

    job: Path
    run: Path
    log: Follower
    expected: dict[str, str]


@pytest.fixture
def begin(
    cluster: RayOnHosts, desk: Desk, database: str, reference: tuple[str, dict[str, str]], tmp_path: Path
) -> Callable[[str, int], Training]:
    """Submits a job of a name, and returns when so many steps are saved."""

    def begun(name: str, step: int) -> Training:
        data, expected = reference
        run = tmp_path / "run"
        write_config(tmp_path, data, str(run))
        about = {"nodes": 2, "environment": {"MLFLOW_TRACKING_URI": database}, "max_restarts": 3}
        job = write_job(tmp_path, cluster.address, name=name, **about)
        desk.jobs("submit", job)
        log = Follower(desk, name)
        when_saved(run, step)
        return Training(job, run, log, expected)

    return begun


@pytest.mark.slow
@pytest.mark.timeout(1800)
@on_hosts
def test_a_cancelled_training_has_saved_and_goes_on_when_it_is_submitted_again(
    cluster: RayOnHosts, desk: Desk, begin: Callable[[str, int], Training]
) -> None:
    training = begin("cancelled", 5)
    go_on = cluster.hold_workers("left")
    assert sorted(desk.job("cancelled")["nodes"]) == sorted(cluster.hosts.addresses[name] for name in ("left", "right"))
    cancel = desk.begin("cancel", "cancelled")
    training.log.wait_for("asking the workers to leave: SIGTERM")
    assert cancel.poll() is None
    go_on()
    told, _ = cancel.communicate(timeout=ray_cluster.PATIENCE_S)
    assert cancel.returncode == 0, told
    assert "asked to leave (SIGTERM): saved at step" in training.log.finish()
    assert desk.job("cancelled")["state"] == "cancelled"

    # The same again goes on at the step that was saved; asked to make room, it saves and goes on by itself.
    [again] = json.loads(desk.jobs("submit", training.job, "--json"))
    assert (again["new"], again["attempt"]) == (True, 1)
    log = Follower(desk, "cancelled")
    when_saved(training.run, 15)
    go_on = cluster.hold_workers("left")
    desk.jobs("requeue", "cancelled")
    log.wait_for("asking the workers to leave: SIGTERM")
    go_on()
    log.finish()
    done = desk.wait_for("cancelled", "succeeded")
    assert (done["restarts"], done["attempt"]) == (1, 1)
    left, resumed = event(training.run, "preempted"), event(training.run, "resumed")
    assert [entry["step"] for entry in left] == [entry["step"] for entry in resumed]
    assert len(left) == 2
    assert all(entry["world_size"] == 2 for entry in resumed)
    assert "submitted" not in desk.jobs("submit", training.job).replace("nothing was submitted", "")
    assert result(training.run) == training.expected


@pytest.mark.slow
@pytest.mark.timeout(1800)
@on_hosts
def test_a_training_whose_command_is_killed_goes_on(
    cluster: RayOnHosts, desk: Desk, begin: Callable[[str, int], Training]
) -> None:
    training = begin("killed", 10)
    cluster.hold_workers("left")
    cluster.command().send_signal(signal.SIGKILL)
    training.log.wait_for(r"astroclip was killed by SIGKILL: restart 1 of 3")
    assert f"step {STEPS}/{STEPS}" in training.log.finish()
    assert desk.wait_for("killed", "succeeded")["restarts"] == 1
    assert event(training.run, "resumed")[0]["step"] in (10, 15)
    assert result(training.run) == training.expected


@pytest.mark.slow
@pytest.mark.timeout(1800)
@on_hosts
def test_a_dead_head_ends_its_jobs_and_the_next_submit_goes_on(
    cluster: RayOnHosts, desk: Desk, begin: Callable[[str, int], Training]
) -> None:
    training = begin("headless", 5)
    cluster.hold_workers("right")
    for name in ("head", "left", "right"):
        cluster.hosts.kill(name)
    assert "No Ray dashboard answers there" in desk.jobs("status", "headless", code=1)
    training.log.command.send_signal(signal.SIGINT)
    assert training.log.command.wait(30) == 130
    cluster.start_head()
    cluster.join("left")
    cluster.join("right")
    assert "the cluster does not know it" in desk.jobs("status", "headless")
    desk.jobs("submit", training.job)
    assert desk.wait_for("headless", "succeeded")["attempt"] == 1
    assert event(training.run, "resumed")[0]["step"] in (5, 10)
    assert result(training.run) == training.expected
