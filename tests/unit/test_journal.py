"""What the first rank writes down: metrics, and how much of the device a run uses."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient

from astroclip_dist.config import RunConfig, parse_config
from astroclip_dist.data.ordering.order import Cursor
from astroclip_dist.errors import DataError
from astroclip_dist.parallel.process_group import Ranks
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import Progress, Saved
from astroclip_dist.train.event_log import read_events
from astroclip_dist.train.journal import Journal
from astroclip_dist.train.run_folder import is_finished, register
from astroclip_dist.train.throughput import peak_flops, peak_memory
from tests.until import until

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all tests: creating it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def config(tmp_path: Path, database: str, request: pytest.FixtureRequest) -> RunConfig:
    return parse_config(
        f"{{data: {tmp_path}/data, run: {tmp_path}/run, device: cpu, length: 4 steps, workers: 2, "
        "batch: {global_size: 8, lanes: 2}, optimizer: {lr: 1e-3}, "
        f"tracking: {{uri: '{database}', experiment: {request.node.name}, log_every: 2}}}}",
        "test",
    )


def logged(config: RunConfig, rank: int, terms: list[dict[str, Any]], flops: float) -> dict[str, list[Any]]:
    """Metrics in MLflow after some steps of half a second each, a tenth of it waiting for data."""
    store = Store(config.run)
    register(store, config)
    with Journal(config, store, Ranks(rank, 2, rank, CPU, made_group=False), len(terms), flops) as journal:
        journal.started(Progress(), 10)
        for number, values in enumerate(terms, start=1):
            journal.step(Progress(number, Cursor(0, number)), values, waited_s=0.05, took_s=0.5)
    client = MlflowClient(config.tracking_uri())
    found: dict[str, list[Any]] = {}
    if experiment := client.get_experiment_by_name(config.tracking.experiment):
        for run in client.search_runs([experiment.experiment_id]):
            for name in run.data.metrics:
                history = client.get_metric_history(run.info.run_id, name)
                found[name] = [(metric.step, metric.value) for metric in history]
    return found


class Counted(torch.Tensor):
    """Counts how often a value leaves the device."""

    reads = 0

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__float__):
            cls.reads += 1
        return super().__torch_function__(function, types, args, kwargs or {})


def test_metrics_of_an_interval(config: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Counted.reads = 0
    terms = [
        {
            "loss": float(number),
            "gradient_norm": 1.0,
            "lr": 1e-3,
            "logit_scale": torch.tensor([15.5]).as_subclass(Counted),
            "koleo_loss": torch.tensor(2.0, dtype=torch.bfloat16).as_subclass(Counted),
        }
        for number in range(1, 5)
    ]
    found = logged(config, 0, terms, flops=3e6)
    assert found["loss"] == [(2, 2.0), (4, 4.0)]
    assert found["logit_scale"][0] == (2, 15.5)
    # Device tensors are read at logged steps alone, all at once.
    assert Counted.reads == 2
    assert found["samples_per_second"][1] == (4, pytest.approx(16.0))
    assert found["data_wait_share"][1] == (4, pytest.approx(0.1))
    # 16 samples a second on two devices, 3e6 FLOP each.
    assert found["flops_per_second"][1] == (4, pytest.approx(24e6))
    # Nothing is known of this device's peak.
    assert "mfu" not in found
    assert found["memory_gb"][0][1] == pytest.approx(peak_memory(CPU) / 1e9, rel=0.5)
    assert "16 samples/s" in caplog.text


def test_mfu_is_the_share_of_the_peak(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astroclip_dist.train.journal.device_peak", lambda device, precision: 96e6)
    found = logged(config, 0, [{"loss": 1.0, "gradient_norm": 1.0, "lr": 1e-3}] * 2, flops=3e6)
    assert found["mfu"] == [(2, pytest.approx(0.25))]


def test_other_ranks_write_nothing(config: RunConfig) -> None:
    assert logged(config, 1, [{"loss": 1.0, "gradient_norm": 1.0, "lr": 1e-3}] * 2, flops=1.0) == {}


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.4),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A10", 125.0),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peak_of_a_device(name: str, bf16: float | None) -> None:
    assert peak_flops(name, "bf16") == (None if bf16 is None else pytest.approx(bf16 * 1e12))
    assert (peak_flops(name, "fp32") or 0) < (peak_flops(name, "bf16") or 1)


def status(config: RunConfig) -> str:
    identity = json.loads(Store(config.run).read("tracking.json"))
    return MlflowClient(config.tracking_uri()).get_run(identity["run_id"]).info.status


def test_old_checkpoints_that_stay_are_counted_until_they_are_gone(config: RunConfig) -> None:
    store = Store(config.run)
    register(store, config)
    with Journal(config, store, Ranks(0, 1, 0, CPU, made_group=False), 4, 1.0) as journal:
        for step, unpruned in enumerate(("refused", "refused", None, "refused"), start=1):
            journal.saved(Saved(f"checkpoints/step-{step:09d}", Progress(step), unpruned))
    events = read_events(store)
    told = [(event["step"], event["error"], event["in_a_row"]) for event in events if event["event"] == "unpruned"]
    assert told == [(1, "refused", 1), (2, "refused", 2), (4, "refused", 1)]


def test_mlflow_is_told_how_a_run_stands(config: RunConfig) -> None:
    store = Store(config.run)
    register(store, config)
    ranks = Ranks(0, 1, 0, CPU, made_group=False)
    halfway, done = Progress(2, Cursor(0, 2)), Progress(4, Cursor(0, 4))
    with Journal(config, store, ranks, 4, 1.0) as journal:
        journal.started(Progress(), 10)
        assert status(config) == "RUNNING"
        journal.preempted(halfway, "SIGTERM")
    assert status(config) == "SCHEDULED"

    def fail() -> None:
        with Journal(config, store, ranks, 4, 1.0) as journal:
            journal.started(halfway, 10)
            until(lambda: status(config) == "RUNNING")
            raise DataError("field", "value", "Mend it.")

    with pytest.raises(DataError):
        fail()
    assert status(config) == "FAILED"
    with Journal(config, store, ranks, 4, 1.0) as journal:
        journal.started(halfway, 10)
        journal.finished(done)
    assert status(config) == "FINISHED"
    events = read_events(store)
    assert [(event["event"], event.get("step")) for event in events] == [
        ("started", 0),
        ("preempted", 2),
        ("resumed", 2),
        ("failed", None),
        ("resumed", 2),
        ("finished", 4),
    ]
    assert events[0]["steps"] == 4
    assert (events[1]["reason"], events[3]["error"]) == ("SIGTERM", "field: value. Mend it.")
    assert is_finished(store)
