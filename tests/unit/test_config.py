"""Configuration: strictness, precedence, units, and errors that name field, value and mend."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astroclip_dist.config import dump_config, load_config, parse_config
from astroclip_dist.config.load import merge, parse_override
from astroclip_dist.config.units import TrainingLength
from astroclip_dist.errors import ConfigError

MINIMAL = """
data: data/mock
run: runs/one
length: 5 epochs
batch: {global_size: 16, lanes: 4}
optimizer: {lr: 1e-4}
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize(
    ("override", "field", "mend"),
    [
        ("optimizer.lrr=3", "optimizer.lrr", "Did you mean 'lr'?"),
        ("lenght=3 steps", "lenght", "Did you mean 'length'?"),
        ("length=5 hours", "length", "one of steps, epochs, samples"),
        ("length=1.5 steps", "length", "whole numbers"),
        ("length=0 epochs", "length", "above 0"),
        ("checkpoint.every=0 steps", "checkpoint.every", "above 0"),
        ("health.collective_timeout=5", "health.collective_timeout", "one of s, min, h"),
        ("workers=3", "workers", "divide batch.lanes = 4"),
        ("batch.global_size=18", "batch.global_size", "multiple of batch.lanes = 4"),
        ("batch.micro_size=7", "batch.micro_size", "divide the 16 samples"),
        ("objective.image.heads=7", "objective.image.heads", "divide width = 1024"),
        ("objective.image.hedas=7", "objective.image.hedas", "Did you mean 'heads'?"),
        ("objective.image.crop=145", "objective.image.crop", "multiple of patch = 12"),
        ("engine.zero_stage=2", "engine.name", "ddp, fsdp, deepspeed"),
        ("engine.name=zero", "engine.name", "'ddp', 'fsdp', 'deepspeed'"),
        ("engine={name: deepspeed, zero_stage: 9}", "engine.zero_stage", "1, 2 or 3"),
        ("optimizer.lr", "override", "key=value"),
        ("run=s3://key:secret@bucket/run", "run", "in the environment"),
        ("tracking.uri=http://me:secret@host:5000", "tracking.uri", "MLFLOW_TRACKING_PASSWORD"),
        ("tracking.uri=https://secret@host", "tracking.uri", "MLFLOW_TRACKING_TOKEN"),
    ],
)
def test_wrong_values_name_field_and_mend(minimal: Path, override: str, field: str, mend: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(minimal, [override])
    assert caught.value.field == field
    assert mend in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_wrong_fields_are_told_at_once(minimal: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)objective.head.dropout.*optimizer.lr: -1"):
        load_config(minimal, ["objective.head.dropout=2", "optimizer.lr=-1"])


def test_missing_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: x\nrun: y\n")
    with pytest.raises(ConfigError, match=r"length: missing.*\n?.*batch: missing"):
        load_config(path)


def test_paths_are_made_absolute_where_they_were_written(minimal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(minimal.parent)
    config = load_config(minimal, ["tracking.uri=sqlite:///mlflow.db"])
    assert config.data == ((minimal.parent / "data" / "mock").as_uri(),)
    assert config.run == (minimal.parent / "runs" / "one").as_uri()
    assert config.tracking.uri == f"sqlite:///{minimal.parent / 'mlflow.db'}"
    assert load_config(minimal, ["run=s3://bucket/run/"]).run == "s3://bucket/run"


def test_precedence_of_layers(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MINIMAL + "seed: 1\nworkers: 2\nhealth: {max_restarts: 1}\n")
    (tmp_path / "b.yaml").write_text("seed: 2\nhealth: {skipped_steps_budget: 5}\n")
    (tmp_path / "c.yaml").write_text("extends: [a.yaml, b.yaml]\nseed: 3\n")
    config = load_config(tmp_path / "c.yaml", ["seed=4", "seed=5"])
    assert (config.seed, config.workers) == (5, 2)
    assert (config.health.max_restarts, config.health.skipped_steps_budget) == (1, 5)
    assert load_config(tmp_path / "c.yaml").seed == 3


def test_another_name_drops_the_weaker_section() -> None:
    weak = {"engine": {"name": "deepspeed", "zero_stage": 3}}
    assert merge(weak, parse_override("engine.name=fsdp")) == {"engine": {"name": "fsdp"}}
    assert merge(weak, parse_override("engine.precision=bf16"))["engine"]["zero_stage"] == 3


def test_key_written_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL + "seed: 1\nseed: 2\n")
    with pytest.raises(ConfigError, match="'seed' twice"):
        load_config(path)


def test_file_that_extends_itself(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ConfigError, match="cannot extend itself"):
        load_config(tmp_path / "a.yaml")


@given(
    seed=st.integers(0, 2**32 - 1),
    lr=st.floats(1e-8, 1.0),
    amount=st.integers(1, 10**6),
    unit=st.sampled_from(["steps", "epochs", "samples"]),
    engine=st.sampled_from(["ddp", "fsdp", "deepspeed"]),
)
def test_resolved_configuration_loads_back_to_the_same(
    seed: int, lr: float, amount: int, unit: str, engine: str
) -> None:
    text = MINIMAL.replace("5 epochs", f"{amount} {unit}").replace("1e-4", repr(lr))
    config = parse_config(f"{text}\nseed: {seed}\nengine: {{name: {engine}}}\n", "test")
    assert parse_config(dump_config(config), "again") == config


def test_lengths_in_steps() -> None:
    assert TrainingLength(20, "steps").steps(64, 10) == 20
    assert TrainingLength(2.5, "epochs").steps(64, 10) == 25
    assert TrainingLength(6400, "samples").steps(64, 10) == 100
