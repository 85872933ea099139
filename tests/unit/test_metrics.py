"""The metrics of a run: the table, HTTP, what a journal makes of steps, progress, attempts."""

from __future__ import annotations

import json
import logging
import math
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from astroclip_dist.config import RunConfig, parse_config
from astroclip_dist.config.run import Metrics
from astroclip_dist.data.ordering.order import Cursor
from astroclip_dist.errors import ConfigError, DataError, StorageError
from astroclip_dist.parallel import phase
from astroclip_dist.parallel.process_group import Ranks
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import Progress
from astroclip_dist.train.checkpoint.checkpointer import Saved
from astroclip_dist.train.event_log import EventLog, read_events
from astroclip_dist.train.exporter import HttpExporter, forget_target
from astroclip_dist.train.failure import OtherRankError
from astroclip_dist.train.heartbeat import Heartbeat
from astroclip_dist.train.journal import Journal
from astroclip_dist.train.metrics import METRICS, RunMetrics
from astroclip_dist.train.monitor import Monitor
from astroclip_dist.train.progress_file import ProgressFile
from astroclip_dist.train.run_folder import PROGRESS_FILE, register
from tests.until import until

CPU = torch.device("cpu")
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module", autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One database for all tests: creating it takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")
        yield


def configured(folder: Path, **metrics: Any) -> RunConfig:
    return parse_config(
        f"{{data: {folder}/data, run: {folder}/run, device: cpu, length: 100 steps, metrics: {json.dumps(metrics)}, "
        "batch: {global_size: 8, lanes: 2}, optimizer: {lr: 1e-3}, checkpoint: {every: 10 steps}}",
        "test",
    )


def scraped(url: str) -> Samples:
    """What Prometheus would read, without the label ``run``."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k != "run"))): sample.value
        for family in families
        for sample in family.samples
    }


def monitor(folder: Path, **metrics: Any) -> Monitor:
    config = configured(folder, port=0, **metrics)
    return Monitor(config, Store(config.run), world_size=2, total_steps=100, quarantine_budget=50)


def url_of(monitor: Monitor) -> str:
    assert monitor.endpoint is not None
    return monitor.endpoint.url


def test_every_step_counts_and_nothing_is_read_from_a_device(tmp_path: Path) -> None:
    class Untouchable(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise AssertionError(f"{function} of a term that lies on a device")

    watched = monitor(tmp_path)
    watched.started(Progress(20), steps_per_epoch=10)
    term = torch.tensor(1.0).as_subclass(Untouchable)
    for step in range(21, 28):
        terms = {"loss": 0.5 * step, "gradient_norm": 2.0, "lr": 1e-3, "koleo": term}
        watched.step(Progress(step, Cursor(2, step), skipped_steps=1), terms, waited_s=0.25, took_s=0.5)
    watched.skipped("spike")
    watched.saved(Progress(25))
    watched.logged({"memory_gb": 1.5, "mfu": 0.4, "quarantined_samples": 3.0, "loss": 1.0})
    found = scraped(url_of(watched))
    expected = {
        "steps_total": 7,
        "samples_total": 56,
        "step_seconds_total": 3.5,
        "data_wait_seconds_total": 1.75,
        "step": 27,
        "target_steps": 100,
        "world_size": 2,
        "loss": 13.5,
        "gradient_norm": 2.0,
        "learning_rate": 1e-3,
        "unsaved_steps": 2,
        "saves_total": 1,
        "save_every_steps": 10,
        "run_skipped_steps": 1,
        "memory_bytes": 1.5e9,
        "mfu_ratio": 0.4,
        "quarantined_samples": 3,
        "quarantine_budget_samples": 50,
    }
    assert {name: found[f"astroclip_{name}", ()] for name in expected} == pytest.approx(expected)
    assert found["astroclip_skipped_steps_total", (("kind", "spike"),)] == 1
    assert found["astroclip_skipped_steps_total", (("kind", "not finite"),)] == 0
    now = time.time()
    for name in ("start", "last_step", "last_save"):
        assert now - 60 < found[f"astroclip_{name}_time_seconds", ()] <= now
    assert ("astroclip_end_time_seconds", ()) not in found
    [(_, labels)] = [key for key in found if key[0] == "astroclip_run_info"]
    assert {("objective", "clip"), ("engine", "ddp"), ("world_size", "2"), ("launcher", "local")} <= {*labels}
    watched.close(over=True, deadline_s=5)


def test_a_loss_that_is_no_number_is_told_as_such(tmp_path: Path) -> None:
    watched = monitor(tmp_path)
    watched.started(Progress(), steps_per_epoch=10)
    watched.step(Progress(1), {"loss": math.nan, "gradient_norm": math.inf, "lr": 1e-3}, waited_s=0.0, took_s=0.1)
    found = scraped(url_of(watched))
    assert math.isnan(found["astroclip_loss", ()])
    assert found["astroclip_gradient_norm", ()] == math.inf
    watched.close(over=True, deadline_s=5)
    assert json.loads(Store(watched.metrics.run).read(PROGRESS_FILE))["loss"] is None


def test_what_is_exposed_is_in_the_table_and_named_by_its_kind() -> None:
    metrics = RunMetrics("file:///run")
    metrics.set("astroclip_unheard_of", 1.0)
    with pytest.raises(KeyError):
        metrics.read()
    for metric in METRICS.values():
        assert metric.name.startswith("astroclip_")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.name.endswith("_time_seconds") == (metric.kind == "time"), metric.name
        assert metric.help


def test_every_metric_is_exposed_by_its_name_with_its_labels() -> None:
    metrics = RunMetrics("file:///run")
    for metric in METRICS.values():
        metrics.set(metric.name, 1.0, *metric.labels)
    endpoint = HttpExporter(metrics, Metrics(port=0))
    found = scraped(endpoint.url)
    endpoint.close(over=True)
    assert set(found) == {
        (metric.name, tuple(sorted((label, label) for label in metric.labels))) for metric in METRICS.values()
    }


def test_the_target_lives_as_long_as_the_run_ought_to_answer(tmp_path: Path) -> None:
    """A run that ended with a word takes its target away; one that crashed leaves it, and the next attempt's replaces
    it, or the launcher that leaves forgets it; an attempt that was replaced meanwhile leaves the newer one alone."""
    targets = tmp_path / "targets"

    def listed() -> list[Any]:
        return [target for file in targets.glob("*.json") for target in json.loads(file.read_text())]

    crashed = monitor(tmp_path, targets_folder=str(targets))
    crashed.started(Progress(), steps_per_epoch=10)
    [target] = listed()
    assert target["labels"] == {"run": (tmp_path / "run").as_uri()}
    assert f"http://{target['targets'][0]}/metrics" == url_of(crashed)
    crashed.close(over=False, deadline_s=5)
    assert listed() == [target]
    with pytest.raises(urllib.error.URLError):
        scraped(url_of(crashed))
    for _ in range(2):
        forget_target(crashed.metrics.run, str(targets))
        assert listed() == []
    older, newer = (monitor(tmp_path, targets_folder=str(targets)) for _ in range(2))
    older.started(Progress(), steps_per_epoch=10)
    newer.started(Progress(), steps_per_epoch=10)
    older.close(over=True, deadline_s=5)
    [target] = listed()
    assert f"http://{target['targets'][0]}/metrics" == url_of(newer)
    newer.close(over=True, deadline_s=5)
    assert list(targets.iterdir()) == []


def test_a_target_that_cannot_be_removed_is_said_and_the_run_ends_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = monitor(tmp_path, targets_folder=str(tmp_path / "targets"))
    watched.started(Progress(), steps_per_epoch=10)
    [target] = (tmp_path / "targets").iterdir()
    target.unlink()
    target.mkdir()
    watched.close(over=True, deadline_s=5)
    assert f"{target} stays" in caplog.text


def test_a_taken_port_is_said_and_the_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = configured(tmp_path, port=port, targets_folder=str(tmp_path / "targets"))
        store = Store(config.run)
        register(store, config)
        with Journal(config, store, Ranks(0, 1, 0, CPU, made_group=False), 4, 1.0) as journal:
            journal.started(Progress(), 10)
            journal.step(Progress(1), {"loss": 1.0, "gradient_norm": 1.0, "lr": 1e-3}, waited_s=0.0, took_s=0.1)
    assert f"metrics.port: 127.0.0.1:{port}" in caplog.text
    [event] = [event for event in read_events(store) if event["event"] == "unwatched"]
    assert "Address already in use" in event["error"]
    assert not (tmp_path / "targets").exists()


def test_a_folder_for_targets_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    watched = monitor(tmp_path, targets_folder=str(tmp_path / "file" / "targets"))
    watched.started(Progress(), steps_per_epoch=10)
    assert watched.failure is not None
    assert "metrics.targets_folder" in watched.failure
    watched.close(over=True, deadline_s=5)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"port": 70000}, "metrics.port: 70000"),
        ({"port": 9400, "address": "everywhere"}, "metrics.address: 'everywhere'"),
        ({"targets_folder": "/var/targets"}, "metrics.targets_folder"),
        ({"prot": 9400}, "Did you mean 'port'?"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(tmp_path, **values)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("error", "target_stays"),
    [
        (None, False),
        (DataError("data", "x", "Mend it."), False),
        (OtherRankError("rank 1 failed", DataError("data", "x", "Mend it.")), False),
        (OtherRankError("another rank ended without a word"), True),
        (RuntimeError("of a kind that a restart may cure"), True),
    ],
)
def test_how_an_attempt_ended_decides_whether_it_is_missed(
    tmp_path: Path, error: Exception | None, target_stays: bool
) -> None:
    config = configured(tmp_path, port=0, targets_folder=str(tmp_path / "targets"))
    store = Store(config.run)
    register(store, config)
    try:
        with Journal(config, store, Ranks(0, 1, 0, CPU, made_group=False), 4, 1.0) as journal:
            journal.started(Progress(), 10)
            if error is not None:
                raise error
            journal.preempted(Progress(), "SIGTERM")
    except type(error or ConfigError):
        pass
    assert any((tmp_path / "targets").iterdir()) == target_stays


def test_attempts_and_failed_saves_are_counted_over_the_life_of_the_run(tmp_path: Path) -> None:
    config = configured(tmp_path)
    store = Store(config.run)
    with EventLog(store) as events:
        events.write("started", step=0)
        events.write("preempted", step=5, reason="SIGTERM")
        events.write("resumed", step=5)  # killed
        events.write("restarting", cause="rank 0 was killed by SIGKILL")
        events.write("resumed", step=5)
        events.write("failed", error="s3://... cannot be written", phase="save")
    metrics = Monitor(config, store, world_size=1, total_steps=100, quarantine_budget=1).metrics
    assert metrics.get("astroclip_restarts_total", "failure") == 2
    assert metrics.get("astroclip_restarts_total", "preemption") == 1
    assert metrics.get("astroclip_save_failures_total") == 1


def test_a_failed_save_is_told_by_its_event(tmp_path: Path) -> None:
    config = configured(tmp_path)
    store = Store(config.run)
    register(store, config)
    phase.begin()
    try:
        with Journal(config, store, Ranks(0, 1, 0, CPU, made_group=False), 4, 1.0) as journal:
            journal.started(Progress(), 10)
            phase.enter("save", 7)
            raise StorageError("run", store.url, "No space left.")
    except StorageError:
        phase.begin()
    assert read_events(store)[-1]["phase"] == "save"


def test_progress_is_that_of_the_last_step(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    metrics = RunMetrics(store.url)
    file = ProgressFile(store, metrics, global_batch=8)
    file.write()
    assert not store.exists(PROGRESS_FILE)
    metrics.set("astroclip_target_steps", 100)
    metrics.set("astroclip_start_time_seconds", 1000.0)
    for step, when, loss in ((42, 1001.0, 0.5), (44, 1005.0, math.inf), (44, 1005.0, 0.25)):
        metrics.set("astroclip_step", step)
        metrics.set("astroclip_steps_total", step - 40)
        metrics.set("astroclip_last_step_time_seconds", when)
        metrics.set("astroclip_loss", loss)
        file.write()
    # Four steps in five seconds since the start at step 40; what did not move on was not written again.
    assert json.loads(store.read(PROGRESS_FILE)) == {
        "step": 44,
        "steps": 100,
        "time": "1970-01-01T00:16:45Z",
        "samples_per_second": 6.4,
        "eta_s": 70,
        "loss": None,
    }


def test_the_last_progress_is_written_at_a_preemption(tmp_path: Path) -> None:
    config = configured(tmp_path)
    store = Store(config.run)
    register(store, config)
    with Journal(config, store, Ranks(0, 1, 0, CPU, made_group=False), 100, 1.0) as journal:
        journal.started(Progress(), 10)
        for step in (1, 2, 3):
            terms = {"loss": 0.25, "gradient_norm": 1.0, "lr": 1e-3}
            journal.step(Progress(step), terms, waited_s=0.0, took_s=0.1)
        journal.saved(Saved("checkpoints/step-000000003", Progress(3)))
        journal.preempted(Progress(3), "SIGTERM")
    progress = json.loads(store.read(PROGRESS_FILE))
    assert (progress["step"], progress["steps"], progress["loss"]) == (3, 100, 0.25)


def test_other_ranks_tell_nothing(tmp_path: Path) -> None:
    config = configured(tmp_path, port=0, targets_folder=str(tmp_path / "targets"))
    with Journal(config, Store(config.run), Ranks(1, 2, 1, CPU, made_group=False), 4, 1.0) as journal:
        journal.started(Progress(), 10)
        journal.step(Progress(1), {"loss": 1.0}, waited_s=0.0, took_s=0.1)
    assert list(tmp_path.iterdir()) == []


def test_a_beat_that_fails_or_hangs_holds_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    beats, hang = [], threading.Event()

    def beat() -> None:
        beats.append(time.monotonic())
        if len(beats) < 4:
            raise StorageError("progress.json", "s3://runs/a", "It does not answer.")
        hang.wait(30)

    heartbeat = Heartbeat("progress.json", beat, 0.01)
    until(lambda: len(beats) == 4)
    began = time.monotonic()
    heartbeat.close(0.2)
    assert time.monotonic() - began < 5
    hang.set()
    # Said once for the three in a row, and once for the end.
    assert caplog.text.count("It does not answer") == 1
    assert "was not done within" in caplog.text


def test_a_step_costs_microseconds(tmp_path: Path) -> None:
    watched = Monitor(configured(tmp_path), Store(tmp_path / "run"), 1, 10**6, 1)
    watched.started(Progress(), steps_per_epoch=10)
    terms = {"loss": 1.0, "gradient_norm": 1.0, "lr": 1e-3}
    costs = []
    for step in range(1, 2001):
        began = time.perf_counter()
        watched.step(Progress(step), terms, waited_s=0.0, took_s=0.1)
        costs.append(time.perf_counter() - began)
    watched.close(over=True, deadline_s=5)
    # The median of many, on a machine that does much else; a step of a training takes tens of milliseconds at least.
    assert sorted(costs)[1000] < 200e-6
