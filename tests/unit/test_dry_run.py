"""Dry runs: memory of a rank found without the memory and without the ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from astroclip_dist.cli import main
from astroclip_dist.config import RunConfig, parse_config
from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import ConfigError
from astroclip_dist.train.dry_run import dry_run
from astroclip_dist.train.dry_run.allocations import ACTIVATIONS, AllocationLog
from astroclip_dist.train.dry_run.fake_ranks import fake_ranks
from astroclip_dist.train.dry_run.forecast import Forecast, Layouts, forecast

LAYOUTS = Layouts(ImageLayout(size=24), SpectrumLayout(size=120), True, "test")
IMAGE = "{crop: 24, patch: 6, width: 32, depth: 1, heads: 2}"
SPECTRUM = "{slice_size: 20, slice_stride: 10, width: 32, depth: 1, heads: 2}"
OBJECTIVES = {
    "clip": f"{{name: clip, image: {IMAGE}, spectrum: {SPECTRUM}, head: {{embedding: 16}}}}",
    "dinov2": f"{{name: dinov2, image: {IMAGE}, global_views: {{count: 2, size: 24}}, "
    "local_views: {count: 2, size: 12}, head: {hidden: 16, bottleneck: 8, prototypes: 64}}",
    "masked_spectrum": f"{{name: masked_spectrum, spectrum: {SPECTRUM}, masks: 2, mask_width: 2}}",
}


def configure(objective: str = "clip", engine: str = "{name: ddp}", workers: int = 4, micro: int = 4) -> RunConfig:
    return parse_config(
        f"{{data: unused, run: unused, device: cpu, length: 1 steps, workers: {workers}, "
        f"batch: {{global_size: {8 * workers}, micro_size: {micro}, lanes: {2 * workers}}}, engine: {engine}, "
        f"objective: {OBJECTIVES[objective]}, optimizer: {{lr: 1e-3}}}}",
        "test",
    )


@pytest.fixture(scope="module")
def by_ddp() -> Forecast:
    return forecast(configure(), LAYOUTS)


@pytest.mark.parametrize(("objective", "engine"), [("dinov2", "fsdp"), ("masked_spectrum", "ddp")])
def test_every_objective_runs_dry_and_leaves_nothing_behind(objective: str, engine: str) -> None:
    found = forecast(configure(objective, f"{{name: {engine}, precision: bf16, compile: true}}"), LAYOUTS)
    trained, kept = found.parameters
    divisor = 4 if engine == "fsdp" else 1
    # AdamW: two moments and a step count a parameter tensor.
    assert found.kinds["optimizer state"] == pytest.approx(8 * trained / divisor, rel=0.1)
    assert found.kinds["parameters"] == pytest.approx(4 * trained / divisor, rel=0.1)
    assert found.kinds.get("EMA teacher", 0) == pytest.approx(4 * kept / divisor, rel=0.1)
    assert found.kinds[ACTIVATIONS] > 0
    assert not dist.is_initialized()


def test_states_of_ddp_are_counted_to_the_byte(by_ddp: Forecast) -> None:
    trained, _ = by_ddp.parameters
    # The logit scale is held, and not trained.
    assert by_ddp.kinds["parameters"] == 4 * (trained + 1)
    assert by_ddp.kinds["gradients"] == 4 * trained
    assert by_ddp.total == sum(by_ddp.kinds.values())


def test_fewer_samples_at_once_and_recomputation_need_fewer_activations(by_ddp: Forecast) -> None:
    halved = forecast(configure(micro=2), LAYOUTS)
    assert halved.kinds[ACTIVATIONS] < 0.7 * by_ddp.kinds[ACTIVATIONS]
    recomputed = forecast(configure(engine="{name: ddp, recompute: full}"), LAYOUTS)
    assert recomputed.kinds[ACTIVATIONS] < 0.8 * by_ddp.kinds[ACTIVATIONS]


@pytest.mark.parametrize("stage", [2, 3])
def test_states_of_zero_by_formula(stage: int) -> None:
    found = forecast(configure("dinov2", f"{{name: deepspeed, zero_stage: {stage}, precision: bf16}}"), LAYOUTS)
    trained, _ = found.parameters
    assert found.kinds["optimizer state"] == 3 * trained
    # Beside this rank's part, the bucket that the engine configures.
    assert found.kinds["gradients"] == pytest.approx(2 * (trained / 4 + 5e7), abs=1)
    assert found.kinds["parameters"] == pytest.approx(2 * trained / (4 if stage == 3 else 1), abs=1)
    assert any("formula" in note for note in found.notes)


def test_what_does_not_fit_is_an_error_that_says_what_to_change() -> None:
    with pytest.raises(ConfigError, match=r"batch\.micro_size \(now 4\): smaller") as caught:
        dry_run(configure(), "0.1 MB", as_json=False)
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match="Write a number and MB"):
        dry_run(configure(), "much", as_json=False)


def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = str(tmp_path / "run.yaml")
    Path(path).write_text(
        f"{{data: {tmp_path}/none, run: {tmp_path}/run, device: cpu, length: 1 steps, workers: 2, "
        f"batch: {{global_size: 4, lanes: 2}}, objective: {OBJECTIVES['clip']}, optimizer: {{lr: 1e-3}}}}"
    )
    assert main(["train", path, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total_bytes"] == sum(found["bytes"].values())
    assert "standard layouts" in found["notes"][0]
    assert main(["train", path, "--json"]) == 2


def test_allocations_are_followed_from_birth_to_death() -> None:
    with fake_ranks(2), AllocationLog() as log:
        kept = torch.zeros(100)
        log.name([kept], "kept")
        before = log.now
        temporary = kept + kept
        view = temporary[:10]
        del temporary
        kept += view.sum()
        del view
        after = torch.zeros(50)
        after.untyped_storage().resize_(4)
    assert log.peak(since=0) == {"kept": 400, ACTIVATIONS: 404}
    assert log.peak(since=before)["kept"] == 400
    assert log.peak(since=log.now) == {"kept": 400, ACTIVATIONS: 4}
