"""The doctor against real servers: right, refused, away, slow, far, with another time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from astroclip_dist.doctor.clocks import check_clocks
from astroclip_dist.doctor.collectives import all_reduce
from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.disks import check_disks
from astroclip_dist.doctor.findings import Finding
from astroclip_dist.doctor.ray_cluster import check_ray
from astroclip_dist.doctor.slurm import check_slurm
from astroclip_dist.doctor.storage import check_storage
from astroclip_dist.doctor.tracking_server import check_tracking
from astroclip_dist.store import Store
from tests.random_survey import write_random_survey
from tests.system.conftest import RealMlflowServer, RealObjectStore, run_ops
from tests.system.fault_proxy import FaultProxy
from tests.system.slurm_cluster import small_slurm
from tests.system.test_store import use
from tests.system.training_runs import CONFIG, write_config

# A server that is away, or refuses, costs no more on a busy machine.
SECONDS_S = 15.0
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def bucket(object_store: RealObjectStore) -> str:
    """A bucket with a dataset in ``data``."""
    url = object_store.create_bucket("doctor")
    with pytest.MonkeyPatch.context() as patch:
        use(patch, object_store.trainer)
        write_random_survey(f"{url}/data", 120)
    return url


@pytest.fixture
def trainer(object_store: RealObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, object_store.trainer)


@pytest.fixture
def proxy(object_store: RealObjectStore, trainer: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(object_store.endpoint, seed=3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def only(findings: list[Finding]) -> Finding:
    (found,) = findings
    return found


def places(bucket: str) -> Context:
    return Context(urls=(f"{bucket}/data", f"{bucket}/runs/a"))


def test_storage_that_is_right(bucket: str, trainer: None) -> None:
    data, run = check_storage(places(bucket))
    assert (data.state, run.state) == ("ok", "ok")
    assert "samples/s" in data.what
    assert int(str(data.values["read_bytes"])) > 100_000
    assert int(str(run.values["written_bytes_a_second"])) > 0
    assert Store(f"{bucket}/runs").list() == [], "the probe was left behind"


def test_a_reader_cannot_write(bucket: str, object_store: RealObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, object_store.reader)
    data, run = check_storage(places(bucket))
    assert (data.state, run.state) == ("ok", "problem")
    assert run.what == f"{bucket}/runs/a: cannot be written: access refused (AccessDenied)"
    assert "AWS_ACCESS_KEY_ID" in run.mend


def test_a_wrong_key_and_a_missing_bucket_are_told_apart(
    bucket: str, object_store: RealObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, object_store.trainer)
    found = only(check_storage(Context(urls=("s3://no-such-bucket/x",))))
    assert (found.state, "no such bucket" in found.what) == ("problem", True)
    use(monkeypatch, object_store.trainer, AWS_SECRET_ACCESS_KEY="wrong")
    for found in check_storage(places(bucket)):
        assert (found.state, "access refused" in found.what) == ("problem", True)


def test_storage_that_is_away_costs_seconds(
    bucket: str, object_store: RealObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, object_store.trainer, AWS_ENDPOINT_URL=NOBODY)
    began = time.monotonic()
    storage, clock = only(check_storage(Context(urls=(f"{bucket}/data",)))), only(check_clocks(places(bucket)))
    assert time.monotonic() - began < SECONDS_S
    assert (storage.state, clock.state) == ("problem", "warning")
    assert "AWS_ENDPOINT_URL" in storage.mend


def test_slow_storage_is_a_warning(bucket: str, proxy: FaultProxy) -> None:
    proxy.inject("trickle", path=".tar", seconds=0.4)
    began = time.monotonic()
    found = only(check_storage(Context(urls=(f"{bucket}/data",))))
    assert time.monotonic() - began < SECONDS_S
    assert (found.state, found.what[:5]) == ("warning", "slow:")
    assert float(str(found.values["read_bytes_a_second"])) < 2e6
    assert "reading.cache" in found.mend


def test_far_storage_is_a_warning(bucket: str, proxy: FaultProxy) -> None:
    proxy.inject("delay", path="manifest.json", seconds=0.25)
    found = only(check_storage(Context(urls=(f"{bucket}/data",))))
    assert (found.state, found.what[:4]) == ("warning", "far:")
    assert 0.25 <= float(str(found.values["answer_s"])) < 2


@pytest.mark.parametrize(("ahead_s", "state"), [(0, "ok"), (120, "warning"), (-3600, "problem")])
def test_another_time_is_found(bucket: str, proxy: FaultProxy, ahead_s: int, state: str) -> None:
    proxy.inject("wrong_date", seconds=ahead_s)
    found = only(check_clocks(places(bucket)))
    assert found.state == state
    assert abs(float(str(found.values["ahead_s"])) - ahead_s) < 3
    assert ahead_s == 0 or ("ahead of" if ahead_s > 0 else "behind") in found.what


def test_mlflow_without_a_login(mlflow_server: RealMlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    found = only(check_tracking(Context()))
    assert found.state == "ok"
    assert found.values["version"] == found.values["client_version"]
    assert only(check_clocks(Context())).state == "ok"


def test_mlflow_that_is_away_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY.replace("//", "//me:word@"))
    began = time.monotonic()
    found = only(check_tracking(Context()))
    assert time.monotonic() - began < SECONDS_S
    assert (found.state, "does not answer" in found.what, "word" in found.what) == ("problem", True, False)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_a_full_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "doctor", tmp_path], check=True)
    try:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        found = only(check_disks(Context()))
        assert (found.state, found.what) == ("problem", f"temporary files ({tmp_path}): 1.05 MB free")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.slow
def test_two_ranks_add_up_and_those_that_cannot_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    found = all_reduce("gloo", 2)
    assert found.state == "ok"
    assert float(str(found.values["bytes_a_second"])) > 1e6
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    found = all_reduce("gloo", 2)
    assert (found.state, "nosuch0" in found.what) == ("problem", True)
    found = all_reduce("gloo", 2, deadline_s=0.5)
    assert (found.state, found.what) == ("problem", "2 ranks over gloo: no result within 0.5 s")
    mine = [child.cmdline() for child in psutil.Process().children(recursive=True)]
    assert not any("astroclip_dist.doctor.rank" in line for line in mine)


@pytest.mark.slow
def test_a_ray_cluster_lets_in_who_has_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not pytest's own folder: the path of a socket may have 107 characters.
    short = tempfile.mkdtemp(prefix="ray-")
    try:
        started = run_ops("ray_cluster.py", "start", tmp_path / "ray", "--temp-dir", short)
        address = started.split("join: ")[1].split()[0]
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "ray" / "token"))
        give_up = time.monotonic() + 60
        # A head answers before its own node has joined it.
        while (found := only(check_ray(Context()))).state == "warning" and time.monotonic() < give_up:
            time.sleep(1)
        assert (found.state, found.what) == ("ok", f"Ray at {address} lets us in: 1 node")
        wrong = tmp_path / "wrong"
        wrong.write_text("0" * 64)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(wrong))
        found = only(check_ray(Context()))
        assert (found.state, "refuses us" in found.what) == ("problem", True)
        assert "RAY_AUTH_TOKEN_PATH" in found.mend
    finally:
        run_ops("ray_cluster.py", "stop", tmp_path / "ray")
        shutil.rmtree(short, ignore_errors=True)


@pytest.mark.slow
def test_a_slurm_cluster_is_found() -> None:
    with small_slurm(1):
        found = only(check_slurm(Context()))
        assert (found.state, found.values["usable"], found.values["usable_nodes"]) == ("ok", True, 1)
        assert found.what.endswith("1 of 1 node can be used, partitions batch, urgent")


@pytest.mark.slow
def test_the_whole_command_for_a_run(bucket: str, object_store: RealObjectStore, tmp_path: Path) -> None:
    config = write_config(tmp_path, f"{bucket}/data", f"{bucket}/runs/b", CONFIG)
    command = [sys.executable, "-m", "astroclip_dist.cli", "doctor", str(config)]
    environment = {**os.environ, **object_store.trainer, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment, timeout=200)
    report = json.loads(done.stdout)
    worst = {check["check"]: {finding["state"] for finding in check["findings"]} for check in report["checks"]}
    assert (done.returncode, report["ok"]) == (0, True), done.stdout
    assert worst["storage"] == worst["clocks"] == worst["mlflow"] == worst["collectives"] == {"ok"}
    environment |= object_store.reader
    done = subprocess.run([*command, "seed=3"], capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 1
    assert f"problem  storage      {bucket}/runs/b: cannot be written" in done.stdout
    for identity in (object_store.trainer, object_store.reader):
        assert identity["AWS_SECRET_ACCESS_KEY"] not in done.stdout + done.stderr + json.dumps(report)
