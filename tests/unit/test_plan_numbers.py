"""A plan's arithmetic: options, lengths, saves, bytes read, time, failures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astroclip_dist.config import RunConfig, parse_config
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.data.ordering.mixture import order_of
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import ConfigError
from astroclip_dist.plan.assumptions import QUANTITIES, Assumptions
from astroclip_dist.plan.device import device_of
from astroclip_dist.plan.failures import duration_of
from astroclip_dist.plan.lengths import DataSize, data_size, layouts_of, open_data, run_steps
from astroclip_dist.plan.rates import step_time
from astroclip_dist.plan.storage import members_of, reads_of, saved_and_kept, saves_of
from astroclip_dist.train.checkpoint.inventory import StoredCheckpoint
from astroclip_dist.train.checkpoint.retention import Retention
from tests.random_survey import write_random_survey

SURVEYS = layouts_of(None)


def run(**changes: str) -> RunConfig:
    """A masked-spectrum run of 16 GPUs, under other values for some of its keys."""
    values = {
        "data": "none",
        "run": "none",
        "workers": "16",
        "length": "1000 steps",
        "batch": "{global_size: 1024, lanes: 16}",
        "objective": "{name: masked_spectrum}",
        "engine": "{name: ddp, precision: bf16}",
        "optimizer": "{lr: 1e-3}",
    } | changes
    return parse_config("\n".join(f"{key}: {value}" for key, value in values.items()), "test")


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [
        ("bandwidth", "10 Gb/s", 1.25e9),
        ("bandwidth", "1.25 GB/s", 1.25e9),
        ("device_memory", "80GB", 80e9),
        ("device_flops", "989.4 TFLOP/s", 989.4e12),
        ("mfu", "0.25", 0.25),
        ("samples", "76_446_849", 76_446_849),
        ("restart_time", "90 s", 90),
    ],
)
def test_options_are_read_in_their_units(name: str, text: str, number: float) -> None:
    assumptions = Assumptions({name: text})
    assert assumptions.given(name) == pytest.approx(number)
    assert (assumptions.listed[0].value, assumptions.listed[0].source) == (text, f"--{name.replace('_', '-')}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bandwidth", "10"),
        ("bandwidth", "10 Gbit"),
        ("mfu", "40"),
        ("mfu", "0"),
        ("mfu", "nan"),
        ("device_memory", "-80 GB"),
        ("device_memory", "1e999 GB"),
        ("gpus_per_node", "2.5"),
        ("samples", "many"),
        ("samples", ""),
        ("bandwidth", "0 Gb/s"),
        ("bandwidth", ""),
    ],
)
def test_options_that_are_no_such_number_are_refused_before_they_are_needed(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^--{name.replace('_', '-')}: .*Write a"):
        Assumptions({name: text})


def test_what_is_usual_can_be_read_and_says_where_it_is_from() -> None:
    assumptions = Assumptions({})
    for quantity in QUANTITIES:
        if quantity.usual is not None:
            assumptions.number(quantity.name)
            assumptions.number(quantity.name)
            assert quantity.why
            assert f"--{quantity.option}" in assumptions.listed[-1].source
    assert len(assumptions.listed) == sum(quantity.usual is not None for quantity in QUANTITIES)


def test_devices_by_name_by_numbers_and_unknown() -> None:
    assumptions = Assumptions({})
    named = device_of(run(), "A100", assumptions)
    assert (named.memory, named.flops) == (80e9, 312e12)
    # What hours rest on is told, also where a table knows it.
    assert [(line.what, line.value) for line in assumptions.listed] == [
        ("the GPU", "A100"),
        ("peak of a GPU in bf16", "312 TFLOP/s"),
    ]
    numbers = {"device_memory": "24 GB", "device_flops": "125 TFLOP/s"}
    assert device_of(run(), None, Assumptions(numbers)).memory == 24e9
    with pytest.raises(ConfigError, match=r"--gpu: V9000\. Known are B200"):
        device_of(run(), "V9000", Assumptions({}))
    on_cpu = device_of(run(device="cpu"), None, Assumptions({}))
    assert on_cpu.flops is None
    assert 1e8 < on_cpu.memory < 1e14
    with pytest.raises(ConfigError, match="--gpu"):
        device_of(run(device="cpu"), "H100", Assumptions({}))


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("survey")
    write_random_survey(str(folder), 230, splits={"train": 0.8, "val": 0.2})
    return folder


def test_lengths_and_sizes_are_those_of_the_dataset(survey: Path) -> None:
    config = run(
        data=str(survey), length="5 epochs", workers="2", batch="{global_size: 16, lanes: 4, window_shards: 1}"
    )
    dataset = open_data(config)
    assert dataset is not None
    assumptions = Assumptions({})
    size = data_size(config, dataset, ["spectrum"], layouts_of(dataset), assumptions)
    steps = run_steps(config, dataset, size)
    batch = config.batch
    order = order_of(dataset, seed=0, lanes=batch.lanes, global_batch=batch.global_size, window_shards=1)
    assert steps == RunSteps(5 * order.steps_per_epoch, order.steps_per_epoch, 16)
    files = [path for path in survey.glob("train-*") if path.suffix in (".tar", ".idx")]
    assert size.bytes == pytest.approx(sum(path.stat().st_size for path in files), rel=0.01)
    assert size.is_local
    assert not assumptions.listed


def test_a_sample_that_is_not_there_is_as_large_as_a_real_one(survey: Path) -> None:
    """The formula for assumed data, against the tars of a real dataset."""
    dataset = Dataset.open([str(survey)], ["train"])
    config = run()
    real = data_size(config, dataset, ["image"], layouts_of(dataset), Assumptions({})).sample_bytes
    layouts = replace(SURVEYS, image=ImageLayout(size=24), spectrum=SpectrumLayout(size=120))
    members = ["image", "spectrum", "ivar"]
    assert data_size(config, None, members, layouts, Assumptions({})).sample_bytes == pytest.approx(real, rel=0.1)


def test_data_that_cannot_be_opened_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert open_data(run(data=str(tmp_path / "typo"))) is None
    (said,) = caplog.messages
    assert f"{tmp_path}/typo/manifest.json: not there" in said


def test_without_data_the_plan_says_what_it_takes_instead() -> None:
    assumptions = Assumptions({"sample_bytes": "33 kB"})
    size = data_size(run(length="500 epochs"), None, ["spectrum"], SURVEYS, assumptions)
    assert size == DataSize(178_000, 33e3, False)
    assert [line.source[:16] for line in assumptions.listed] == ["--sample-bytes", "assumed: AstroCL"]
    assert run_steps(run(length="500 epochs"), None, size).total == 500 * (178_000 // 16 // 64)
    with pytest.raises(ConfigError, match="has no step"):
        run_steps(run(), None, DataSize(1000, 1.0, False))


@given(
    total=st.integers(1, 500),
    every=st.integers(1, 120),
    keep_last=st.integers(1, 5),
    keep_every=st.none() | st.integers(1, 200),
    keep_best=st.integers(0, 3),
)
def test_saves_are_counted_and_kept_as_training_does(
    total: int, every: int, keep_last: int, keep_every: int | None, keep_best: int
) -> None:
    kept_too = "null" if keep_every is None else f"{keep_every} steps"
    config = run(
        length=f"{total} steps",
        checkpoint=f"{{every: {every} steps, keep_last: {keep_last}, keep_every: {kept_too}, keep_best: {keep_best}}}",
    )
    steps = RunSteps(total, 100, 1024)
    count, most = saved_and_kept(config.checkpoint, steps, every)
    at = [step for step in range(1, total + 1) if step % every == 0 or step == total]
    assert count == len(at)
    stored = [StoredCheckpoint(str(step), step, 1, None, score=step) for step in at]
    retention = Retention.of(config.checkpoint, steps)
    kept = len(retention.keeps(stored))
    assert kept <= most <= kept + keep_best


def test_a_clock_saves_more_often_than_steps_do() -> None:
    config = run(checkpoint="{every: 1000 steps, interval: 60 s}")
    assert saves_of(config, SURVEYS, RunSteps(1000, 100, 1024), 0.5).count == 9
    assert saves_of(config, SURVEYS, RunSteps(1000, 100, 1024), None).count == 1


def test_every_sample_is_read_whenever_it_is_used() -> None:
    steps, size = RunSteps(1000, 100, 1024), DataSize(102_400, 1e4, False)
    assert reads_of(run(), steps, size, 2).bytes == 1000 * 1024 * 1e4
    assert reads_of(run(), steps, replace(size, is_local=True), 2).bytes == 0


def cached(limit: str) -> RunConfig:
    return run(reading=f"{{cache: {{folder: none, limit: {limit}}}}}")


def test_a_cache_that_holds_all_is_filled_once_by_each_node() -> None:
    size, steps = DataSize(102_400, 1e4, False), RunSteps(10_000, 100, 1024)
    assert reads_of(cached("2 GB"), steps, size, 1).bytes == pytest.approx(size.bytes)
    # Each of four nodes has met nearly all of it after a hundred epochs, a quarter after one.
    assert reads_of(cached("2 GB"), steps, size, 4).bytes == pytest.approx(4 * size.bytes, rel=1e-3)
    assert reads_of(cached("2 GB"), RunSteps(100, 100, 1024), size, 4).bytes == pytest.approx(size.bytes)


@given(nodes=st.integers(1, 8), epochs=st.integers(1, 20), limits=st.tuples(st.integers(1, 2000), st.integers(1, 2000)))
def test_a_larger_cache_never_reads_more(nodes: int, epochs: int, limits: tuple[int, int]) -> None:
    size, steps = DataSize(102_400, 1e4, False), RunSteps(100 * epochs, 100, 1024)
    small, large = (reads_of(cached(f"{limit} MB"), steps, size, nodes).bytes for limit in sorted(limits))
    assert size.bytes * 0.999 <= large <= small * 1.000001
    assert small <= reads_of(run(), steps, size, nodes).bytes * 1.000001


def test_what_limits_a_step_is_what_is_slowest() -> None:
    def limit(**options: str) -> str | None:
        assumptions = Assumptions(options)
        device = device_of(run(), "H100", assumptions)
        return step_time(run(), device, SURVEYS, (43_000_000, 0), DataSize(10**6, 33e3, False), 1.0, assumptions).limit

    assert limit(bandwidth="100 Gb/s", mfu="0.01") == "compute"
    assert limit(bandwidth="100 Mb/s") == "data"
    assert limit(bandwidth="100 Gb/s", interconnect="100 Mb/s") == "network"
    assert limit(bandwidth="100 Gb/s", interconnect="100 Mb/s", gpus_per_node="16") == "compute"


@pytest.mark.parametrize(
    ("engine", "parts"),
    [
        # Bytes a parameter that a rank of a ring sends, over (W - 1) / W: gathers, and gradients.
        ("{name: ddp, precision: bf16}", 8),
        ("{name: fsdp, precision: bf16, reshard_after_forward: false}", 2 + 4),
        ("{name: fsdp, precision: fp32}", 8 + 4),
        ("{name: deepspeed, precision: bf16, zero_stage: 1}", 2 + 2),
        ("{name: deepspeed, precision: bf16, zero_stage: 3}", 4 + 2),
    ],
)
def test_bytes_between_nodes_by_engine(engine: str, parts: int) -> None:
    assumptions = Assumptions({})
    config = run(engine=engine)
    device = device_of(config, None, assumptions)
    size = DataSize(10**6, 33e3, False)
    step = step_time(config, device, SURVEYS, (1_000_000, 0), size, 1.0, assumptions)
    assert step.network_bytes == pytest.approx(parts * 1e6 * 15 / 16)


def test_hours_are_steps_stalls_and_failures() -> None:
    assumptions = Assumptions({"copy_rate": "1 GB/s", "failure_every": "1000", "restart_time": "6 min"})
    steps = RunSteps(36_000, 100, 1024)
    config = run(checkpoint="{every: 3600 steps}")
    saves = replace(saves_of(config, SURVEYS, steps, 1.0), bytes=16 * 10**9)
    found = duration_of(config, steps, 1.0, saves, 2, assumptions)
    assert found.stall == pytest.approx(1)
    assert found.write == pytest.approx(16e9 / 2 / 1.25e9)
    assert found.training == 10
    assert found.saving == pytest.approx(10 / 3600)
    assert found.failures == pytest.approx(16 * (10 + 10 / 3600) / 1000)
    assert found.lost == pytest.approx((1800 + 1 + 6.4 + 360) / 3600)
    assert found.hours == pytest.approx(10 + 10 / 3600 + found.failures * found.lost)
    waited = duration_of(run(checkpoint="{background: false}"), steps, 1.0, saves, 2, assumptions)
    assert waited.stall == pytest.approx(1 + 6.4)


def test_members_are_those_of_the_objective() -> None:
    assert members_of(run(objective="{name: dinov2}"), SURVEYS) == ("image",)
    assert members_of(run(objective="{name: clip}"), SURVEYS) == ("image", "spectrum")
