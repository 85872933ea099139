"""Learning rates and decay of each parameter, as the configuration says, whatever the engine."""

from __future__ import annotations

import pytest
import torch

from astroclip_dist.config.run import Optimizer
from astroclip_dist.parallel.engines import StepRates
from astroclip_dist.parallel.engines.parameter_groups import parameter_groups, set_rates
from tests.rank_pool import RankPool
from tests.tiny_pair import TinyPair, configure, images, lay_out, whole_state

# Three blocks: the norm above them has the full rate, the embedding below them the smallest.
FACTORS = {
    "encoder.embed.": 0.5**4 * 0.2,
    "encoder.class_token": 0.5**4,
    "encoder.position": 0.5**4,
    "encoder.blocks.0.": 0.5**3,
    "encoder.blocks.1.": 0.5**2,
    "encoder.blocks.2.": 0.5,
    "encoder.norm.": 1.0,
    "head.": 1.0,
}
OPTIMIZER = "lr: 1e-3, layer_decay: 0.5, embedding_lr: 0.2"


def factor_of(name: str) -> float:
    (factor,) = [factor for beginning, factor in FACTORS.items() if name.startswith(f"student.{beginning}")]
    return factor


def decays(name: str) -> bool:
    """Matrices do; biases, norms, scales and tokens do not."""
    return (name.endswith("weight") and "norm" not in name) or name.endswith("prototypes")


def test_every_trained_parameter_is_in_one_group_with_its_rates() -> None:
    with torch.device("meta"):
        module = TinyPair()
    names = {parameter: name for name, parameter in module.named_parameters()}
    groups = parameter_groups(module, Optimizer(lr=1e-3, layer_decay=0.5, embedding_lr=0.2))
    found = [(names[parameter], group) for group in groups for parameter in group["params"]]
    assert sorted(name for name, _ in found) == sorted(n for n in names.values() if n.startswith("student."))
    set_rates(groups, StepRates(lr=0.1, weight_decay=0.3))
    for name, group in found:
        assert group["lr"] == pytest.approx(0.1 * factor_of(name)), name
        assert group["weight_decay"] == (0.3 if decays(name) else 0.0), name
    set_rates(groups, StepRates(lr=0.1, weight_decay=0.3, frozen=("prototypes",)))
    assert [name for name, group in found if group["lr"] == 0.0] == ["student.head.prototypes"]


State = dict[str, torch.Tensor]


def step_three_times(engine_name: str) -> tuple[State, State, State, State]:
    """First state, and those after one step: without decay, with it, and with decay and frozen prototypes."""
    first, states = {}, []
    for rates in (StepRates(0.1, 0.0), StepRates(0.1, 0.3), StepRates(0.1, 0.3, ("prototypes",))):
        engine = lay_out(configure(engine_name, optimizer=OPTIMIZER))
        first = whole_state(engine)
        engine.backward(engine.forward(images(0))[0], last=True)
        engine.step(rates)
        states.append(whole_state(engine))
    return first, *states


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "zero2", "zero3"])
def test_every_engine_applies_them(engine: str, two_ranks: RankPool) -> None:
    first, plain, decayed, frozen = two_ranks.run(step_three_times, engine)[0]
    for name in [name.removeprefix("model.") for name in first if name.startswith("model.student.")]:
        before, key = first[f"model.{name}"], f"model.{name}"
        # AdamW (Loshchilov and Hutter 2019): decay is apart from the gradient's step, so it can be told from it.
        expected = before * (0.1 * factor_of(name) * 0.3 if decays(name) else 0.0)
        assert torch.allclose(plain[key] - decayed[key], expected, rtol=1e-3, atol=1e-7), name
        moved = (plain[key] - before).abs().max().item()
        # Adam's first step is the rate itself wherever the gradient is above its epsilon.
        if not name.endswith("qkv.bias"):
            assert moved == pytest.approx(0.1 * factor_of(name), rel=0.05), name
    prototypes = "student.head.prototypes"
    assert torch.equal(frozen[f"model.{prototypes}"], first[f"model.{prototypes}"])
    for moment in ("exp_avg", "exp_avg_sq"):
        name = f"optimizer.{prototypes}.{moment}"
        assert frozen[name].abs().max() > 0
        assert torch.equal(frozen[name], decayed[name])
    assert torch.equal(frozen["model.student.head.mlp.0.weight"], decayed["model.student.head.mlp.0.weight"])
