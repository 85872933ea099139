"""A real Prometheus reads real trainings: over HTTP, through Ray, and one that was stopped."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launchers.worker import PREEMPTED
from tests.random_survey import write_random_survey
from tests.system.conftest import OPS, run_ops
from tests.system.training_runs import Command, write_config

pytestmark = pytest.mark.slow
# Of Prometheus, for everything that it does again and again.
INTERVAL = "1s"
PATIENCE_S = 120.0


class RealPrometheus:
    """Prometheus with the shipped scrape jobs."""

    def __init__(self, folder: Path, *options: str | Path) -> None:
        self.folder, self.targets = folder, folder / "targets"
        self.uri = run_ops("prometheus.py", "start", folder, "--interval", INTERVAL, *options)

    def stop(self) -> None:
        run_ops("prometheus.py", "stop", self.folder, "--grace", "0")

    def _ask(self, path: str, **values: str) -> Any:
        with urllib.request.urlopen(f"{self.uri}/api/v1/{path}?{urllib.parse.urlencode(values)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def values(self, query: str) -> dict[str, float]:
        """Value by the label ``run``."""
        found = self._ask("query", query=query)["result"]
        return {series["metric"].get("run", ""): float(series["value"][1]) for series in found}

    def firing(self) -> set[tuple[str, str]]:
        """(alert, run)"""
        alerts = self._ask("alerts")["alerts"]
        return {(a["labels"]["alertname"], a["labels"]["run"]) for a in alerts if a["state"] == "firing"}

    def labels(self, query: str) -> dict[str, str]:
        [series] = self._ask("query", query=query)["result"]
        return series["metric"]


@pytest.fixture(scope="module", autouse=True)
def _prometheus_can_be_had() -> None:
    if shutil.which("prometheus") is None:
        command = [sys.executable, str(OPS / "debian_package.py"), "prometheus", "usr/bin/prometheus"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
        if done.returncode != 0:
            pytest.skip(f"no Prometheus here: {done.stderr.strip()}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write_random_survey(str(folder), 100)
    return folder.as_uri()


@pytest.fixture(autouse=True)
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def quick_rules(folder: Path) -> Path:
    """The shipped rules, with seconds in place of minutes."""
    text = (OPS / "prometheus" / "alerts.yml").read_text()
    for slow, quick in (("> 900", "> 6"), ("for: 5m", "for: 2s")):
        assert slow in text
        text = text.replace(slow, quick)
    (folder / "quick.yml").write_text(text)
    return folder / "quick.yml"


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[RealPrometheus]:
    server = RealPrometheus(tmp_path / "prometheus", "--rules", quick_rules(tmp_path))
    yield server
    server.stop()


Train = Callable[..., Command]


@pytest.fixture
def train() -> Iterator[Train]:
    """Starts a training; none outlives the test, whatever becomes of it."""
    commands: list[Command] = []

    def start(*arguments: Any, **options: Any) -> Command:
        commands.append(Command(*arguments, **options))
        return commands[-1]

    yield start
    for command in commands:
        command.process.kill()


def until(holds: Callable[[], object], command: Command) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, command.output
        time.sleep(0.3)


def test_steps_rise_and_a_run_that_was_asked_to_leave_is_not_missed(
    tmp_path: Path, data: str, prometheus: RealPrometheus, train: Train
) -> None:
    config, run = write_config(tmp_path, data, str(tmp_path / "run")), (tmp_path / "run").as_uri()
    settings = ("workers=2", "length=10000 steps", "metrics.port=0", f"metrics.targets_folder={prometheus.targets}")
    command = train(config, *settings)
    seen: list[float] = []

    def rises() -> bool:
        steps = prometheus.values("astroclip_steps_total").get(run, 0.0)
        if steps > (seen[-1] if seen else 0.0):
            seen.append(steps)
        return len(seen) == 3

    until(rises, command)
    assert prometheus.values('up{job="astroclip"}') == {run: 1.0}
    assert prometheus.values("astroclip:training") == {run: 1.0}
    samples, steps = (prometheus.values(f"astroclip_{what}_total")[run] for what in ("samples", "steps"))
    assert samples >= 16 * seen[-1]
    assert steps >= seen[-1]
    labels = prometheus.labels("astroclip_run_info")
    assert (labels["objective"], labels["world_size"], labels["launcher"]) == ("clip", "2", "local")
    assert prometheus.values("astroclip_world_size") == {run: 2.0}
    assert prometheus.values("astroclip_restarts_total{after='failure'}") == {run: 0.0}
    command.process.send_signal(signal.SIGTERM)
    assert command.finish() == PREEMPTED, command.output
    assert list(prometheus.targets.iterdir()) == []
    until(lambda: not prometheus.values("up"), command)
    # Longer than it takes AstroclipRunStalled, and AstroclipTargetDown after that.
    time.sleep(10)
    assert prometheus.values("astroclip:last_step_time_seconds")[run] < time.time() - 6
    assert prometheus.firing() == set()
    progress = json.loads((tmp_path / "run" / "progress.json").read_text())
    assert progress["step"] >= seen[-1]
    assert progress["steps"] == 10000


def test_a_stopped_worker_pages_until_it_goes_on(
    tmp_path: Path, data: str, prometheus: RealPrometheus, train: Train
) -> None:
    config, run = write_config(tmp_path, data, str(tmp_path / "run")), (tmp_path / "run").as_uri()
    settings = ("workers=1", "length=10000 steps", "metrics.port=0", f"metrics.targets_folder={prometheus.targets}")
    command = train(config, *settings)
    until(lambda: prometheus.values("astroclip_steps_total").get(run, 0.0) > 5, command)
    assert prometheus.firing() == set()
    worker = command.workers()[0]
    worker.send_signal(signal.SIGSTOP)
    try:
        until(lambda: ("AstroclipRunStalled", run) in prometheus.firing(), command)
        # Nothing of the run answers any more: it is its target that is missed.
        assert prometheus.values("astroclip_steps_total") == {}
        until(lambda: ("AstroclipTargetDown", run) in prometheus.firing(), command)
    finally:
        worker.send_signal(signal.SIGCONT)
    until(lambda: prometheus.firing() == set(), command)
    command.process.send_signal(signal.SIGTERM)
    assert command.finish() == PREEMPTED, command.output


@pytest.fixture
def ray_cluster() -> Iterator[dict[str, str]]:
    """A head with a token; what ``ops/ray_cluster.py`` tells of it."""
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray-") as name:
        folder = Path(name)
        ports = ("--first-port", "27100", "--dashboard-port", "27190")
        told = run_ops("ray_cluster.py", "start", folder, *ports, "--cpus", "3")
        try:
            yield dict(line.split(": ", 1) for line in told.splitlines())
        finally:
            run_ops("ray_cluster.py", "stop", folder, "--grace", "0")


def test_ray_tells_the_same_and_its_end(tmp_path: Path, data: str, ray_cluster: dict[str, str], train: Train) -> None:
    prometheus = RealPrometheus(
        tmp_path / "prometheus",
        *("--rules", quick_rules(tmp_path), "--ray", ray_cluster["address"], "--ray-token", ray_cluster["token"]),
    )
    try:
        config, run = write_config(tmp_path, data, str(tmp_path / "run")), (tmp_path / "run").as_uri()
        environment = {
            "RAY_ADDRESS": ray_cluster["join"],
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": ray_cluster["token"],
        }
        command = train(config, "launcher=ray", "workers=1", "length=10000 steps", environment=environment)
        command.wait_for("step 3/")
        seen: list[float] = []

        def rises() -> bool:
            steps = prometheus.values("astroclip_steps_total").get(run, 0.0)
            if steps > (seen[-1] if seen else 0.0):
                seen.append(steps)
            return len(seen) == 2

        until(rises, command)
        assert prometheus.labels("astroclip_steps_total")["job"] == "ray"
        # A moment, which Ray takes for a counter; and a gauge.
        assert time.time() - 60 < prometheus.values("astroclip_last_step_time_seconds")[run] <= time.time()
        assert prometheus.values("astroclip_target_steps") == {run: 10000.0}
        assert prometheus.values("astroclip:training") == {run: 1.0}
        command.process.send_signal(signal.SIGTERM)
        assert command.finish() == PREEMPTED, command.output
        # The worker's last words got through, and are kept.
        until(lambda: prometheus.values("astroclip_end_time_seconds").get(run), command)
        until(lambda: not prometheus.values("astroclip:training"), command)
        time.sleep(10)
        assert prometheus.values("astroclip_steps_total")[run] >= seen[-1]
        assert prometheus.firing() == set()
    finally:
        prometheus.stop()
