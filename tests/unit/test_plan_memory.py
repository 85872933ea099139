"""A plan's memory is that of the dry run, for every engine; what it proposes fits by the same dry run."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from astroclip_dist.cli import main
from astroclip_dist.config import RunConfig, dump_config
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.plan import memory, verdict
from astroclip_dist.plan.lengths import layouts_of
from astroclip_dist.plan.memory import Need, changed, engine_name, memory_of, need_of, needs_by_engine
from astroclip_dist.plan.storage import saves_of
from astroclip_dist.plan.verdict import Search, fits_well
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import describe
from astroclip_dist.train.dry_run.forecast import forecast
from tests.bare_training import BareTraining
from tests.random_survey import write_random_survey
from tests.rank_pool import RankPool
from tests.unit.test_dry_run import LAYOUTS, OBJECTIVES, configure

ENGINES = ("ddp", "fsdp", "deepspeed, ZeRO 1", "deepspeed, ZeRO 2", "deepspeed, ZeRO 3")
BF16 = "{name: ddp, precision: bf16}"


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one would import torch anew."""
    monkeypatch.setattr(memory, "usable_cores", lambda: 1.0)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("objective", "engine"),
    [
        ("masked_spectrum", BF16),
        pytest.param("masked_spectrum", "{name: deepspeed, zero_stage: 3}", marks=pytest.mark.slow),
        pytest.param("clip", "{name: fsdp, precision: bf16}", marks=pytest.mark.slow),
        pytest.param("dinov2", "{name: deepspeed, zero_stage: 1, precision: bf16}", marks=pytest.mark.slow),
    ],
)
def test_every_engine_needs_what_its_own_dry_run_says(objective: str, engine: str) -> None:
    config = configure(objective, engine)
    needs = needs_by_engine(config, LAYOUTS)
    assert needs[0].config is config
    assert sorted(engine_name(need.config) for need in needs) == sorted(ENGINES)
    for need in needs:
        assert changed(config, need.overrides) == need.config
        assert need.config.engine.precision == config.engine.precision
        assert need.found.kinds == forecast(need.config, LAYOUTS).kinds


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp", "deepspeed"])
def test_many_micro_batches_of_an_alignment_are_a_line_through_fewer(engine: str) -> None:
    config = configure("clip", f"{{name: {engine}, precision: bf16}}")
    config = changed(config, ["batch.global_size=192", "batch.micro_size=4"])
    found = memory_of(config, LAYOUTS)
    assert "12 micro-batches" in found.notes[-1]
    assert found.total == pytest.approx(forecast(config, LAYOUTS).total, rel=1e-4)


def check(found: list[Need], config: RunConfig, memory: float) -> None:
    """Each as a user would type it, anew."""
    for need in found:
        assert need.overrides
        assert fits_well(need_of(config, need.overrides, LAYOUTS), memory)


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_what_is_proposed_fits() -> None:
    config = configure("masked_spectrum", BF16, micro=8)
    needs = needs_by_engine(config, LAYOUTS)
    for share, changes in ((0.99, "batch.micro_size=4"), (0.75, "engine={name: fsdp")):
        memory = share * needs[0].total
        found = Search(needs, LAYOUTS, memory).proposals()
        assert any(need.overrides[0].startswith(changes) for need in found)
        check(found, config, memory)
    assert Search(needs, LAYOUTS, 1000).proposals() == []


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(("objective", "engine"), [*itertools.product(OBJECTIVES, ("ddp", "fsdp", "deepspeed"))])
def test_what_is_proposed_fits_whatever_engine_and_size(objective: str, engine: str) -> None:
    config = configure(objective, f"{{name: {engine}, precision: bf16}}", micro=8)
    config = changed(config, ["batch.lanes=8"])
    needs = needs_by_engine(config, LAYOUTS)
    for share in (0.9, 0.5, 0.3, 0.15):
        check(Search(needs, LAYOUTS, share * needs[0].total).proposals(), config, share * needs[0].total)


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_more_gpus_where_nothing_else_helps() -> None:
    """And no more of them than it takes: what is not sharded stays as large however many there are."""
    config = changed(configure("masked_spectrum", "{name: fsdp, recompute: full}", micro=1), ["batch.lanes=16"])
    wide = changed(config, ["objective.spectrum.width=256"])
    needs = needs_by_engine(wide, LAYOUTS)
    states = needs[0].total - needs[0].activations
    memory = (needs[0].total - 0.4 * states) / verdict.COMFORTABLE
    found = Search(needs, LAYOUTS, memory).proposals()
    check(found, wide, memory)
    [workers] = [need.config.workers for need in found]
    assert workers > wide.workers
    for fewer in (size for size in (8, 16) if wide.workers < size < workers):
        assert not fits_well(need_of(wide, (f"workers={fewer}",), LAYOUTS), memory)


def write(folder: Path, config: RunConfig) -> str:
    (folder / "run.yaml").write_text(dump_config(config))
    return str(folder / "run.yaml")


@pytest.mark.usefixtures("in_this_process")
def test_command_answers_without_data_and_refuses_what_cannot_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed(configure("masked_spectrum", BF16, micro=8), ["device=auto"])
    path = write(tmp_path, config)
    assert main(["plan", path, "--json", "--samples", "1000", "--gpu", "A100"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [need["engine"] for need in found["memory"]] == list(ENGINES)
    assert found["memory"][0]["total_bytes"] == forecast(config, layouts_of(None)).total
    assert found["steps"] == 1
    assert found["device"]["bytes"] == 80e9
    assert found["fits"]
    needed = found["memory"][0]["total_bytes"]
    assert main(["plan", path, "--device-memory", f"{0.8 * needed} B"]) == 2
    printed = capsys.readouterr()
    assert "does not fit: 125% of the memory of a GPU" in printed.out
    assert "batch.micro_size=4" in printed.err
    assert "Traceback" not in printed.err
    assert main(["plan", path, "batch.micro_size=4", "--device-memory", f"{0.8 * needed} B"]) == 0
    text = capsys.readouterr().out
    for part in ("ddp, in all", "deepspeed, ZeRO 3", "GPU-hours", "checkpoint:", "failures", "assumed: ", "\nfits: "):
        assert part in text
    assert main(["plan", path, "--mfu", "40"]) == 2


def save_bare(text: str, run: str) -> None:
    BareTraining(text).save(run, 1)


@pytest.mark.parametrize(
    ("objective", "engine"),
    [
        ("clip", "ddp"),
        ("dinov2", "fsdp"),
        pytest.param("clip", "fsdp", marks=pytest.mark.slow),
        pytest.param("masked_spectrum", "ddp", marks=pytest.mark.slow),
    ],
)
def test_checkpoints_have_the_size_that_was_planned(
    objective: str, engine: str, tmp_path: Path, two_ranks: RankPool
) -> None:
    write_random_survey(str(tmp_path / "data"), 64)
    config = changed(
        configure(objective, f"{{name: {engine}}}", workers=2),
        [f"data={tmp_path}/data", "batch={global_size: 16, micro_size: 4, lanes: 4}"],
    )
    text = dump_config(config).replace("workers: 2\n", "")
    two_ranks.run(save_bare, text, str(tmp_path / "run"))
    (saved,) = describe(Store(tmp_path / "run"))
    planned = saves_of(config, LAYOUTS, RunSteps(1, 1, 16), None)
    assert planned.bytes == pytest.approx(saved.bytes, rel=0.01)
