"""FLOPs by formula against torch's counting of the operations that run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from astroclip_dist.config import load_config, parse_config
from astroclip_dist.config.objective import ImageDino
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.models.flops import sample_flops
from astroclip_dist.objectives import Setting, objective_of
from astroclip_dist.objectives.dinov2.crops import Crops
from astroclip_dist.parallel.engines import build_engine
from astroclip_dist.parallel.process_group import Ranks, join, leave
from astroclip_dist.train.dry_run.inputs import batch_like
from tests.conftest import REPOSITORY

IMAGE_LAYOUT, SPECTRUM_LAYOUT = ImageLayout(size=40), SpectrumLayout(size=400)
IMAGE = "{crop: 36, patch: 6, width: 48, depth: 3, heads: 2, registers: 2}"
SPECTRUM = "{slice_size: 20, slice_stride: 10, width: 48, depth: 3, heads: 2, class_token: true}"
DINO = (
    f"name: dinov2, image: {IMAGE}, global_views: {{count: 2, size: 36}}, local_views: {{count: 3, size: 18}}, "
    "head: {hidden: 64, bottleneck: 16, prototypes: 256}, koleo_weight: 0"
)
OBJECTIVES = {
    "clip": f"name: clip, image: {IMAGE}, spectrum: {SPECTRUM}, head: {{embedding: 16}}",
    "clip, frozen": f"name: clip, image: {IMAGE}, spectrum: {SPECTRUM}, head: {{embedding: 64}}, "
    "freeze_backbones: true",
    "dinov2": DINO,
    "dinov2, dropped": f"{DINO}, drop_path: 0.25",
    "masked_spectrum": f"name: masked_spectrum, spectrum: {SPECTRUM}, masks: 2, mask_width: 2",
}
BATCH = 8


@pytest.fixture(scope="module")
def alone() -> Iterator[Ranks]:
    """A process group of this process."""
    ranks = join("cpu", 60.0)
    yield ranks
    leave(ranks)


def counted(work: Callable[[], object]) -> int:
    """Without the scores that the kernels of attention compute again in backward, one product of five."""

    def forward(query: torch.Size, key: torch.Size, value: torch.Size, *rest: object, **named: object) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(
        gradient: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *rest: object, **named: object
    ) -> int:
        return sdpa_backward_flop_count(gradient, query, key, value) * 4 // 5

    attention = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: forward,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_formulas_agree_with_what_runs(alone: Ranks, name: str) -> None:
    config = parse_config(
        f"{{data: unused, run: unused, device: cpu, length: 1 steps, batch: {{global_size: {BATCH}, lanes: 1}}, "
        f"objective: {{{OBJECTIVES[name]}}}, optimizer: {{lr: 1e-3}}}}",
        "test",
    )
    setting = Setting(config, IMAGE_LAYOUT, SPECTRUM_LAYOUT, False, RunSteps(1, 1, BATCH), alone.device)
    objective = objective_of(setting)
    engine = build_engine(config, alone, objective.build())
    engine.train()
    inputs = objective.prepare(batch_like(IMAGE_LAYOUT, SPECTRUM_LAYOUT, objective.members, BATCH))
    found = counted(lambda: objective.accumulate(engine, inputs, 0)) / BATCH
    flops = sample_flops(config.objective, bands=3, bins=400, global_batch=BATCH)
    expected = flops.executed
    if isinstance(config.objective, ImageDino):
        assert isinstance(inputs[0], Crops)
        # By formula as many patches are masked as will be on average; here as many as were drawn.
        head = config.objective.head
        a_row = 4 * 2 * (48 * head.hidden + head.hidden**2 + head.hidden * head.bottleneck + head.bottleneck * 256)
        expected += a_row * (len(inputs[0].masked) / BATCH - 2 * 36 * 0.5 * 0.3)
    assert expected == pytest.approx(found, rel=0.01)
    assert (flops.nominal > flops.executed) == ("dropped" in name)


def test_the_recipe_of_astroclip_is_what_is_told_of_it() -> None:
    objective = load_config(
        REPOSITORY / "configs/16xH100/image.yaml", ["data=unused", "objective.drop_path=0.3"]
    ).objective
    flops = sample_flops(objective, bands=3, bins=7781, global_batch=1536)
    # 1095.6e9 in blocks, 820.7e9 with three branches of ten left out, 9.7e9 in heads, 0.6e9 in embeddings.
    assert flops.nominal == pytest.approx(1095.6e9 + 9.7e9, rel=2e-3)
    assert flops.executed == pytest.approx(820.7e9 + 9.7e9, rel=2e-3)
