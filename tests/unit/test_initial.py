"""First values: every tensor has one, the same whatever the engine and the number of ranks, drawn from its name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import nn

from astroclip_dist.config import parse_config
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.models.initial import InitialValues, initialise
from astroclip_dist.objectives import Setting, objective_of
from tests.rank_pool import RankPool
from tests.tiny_pair import TinyPair, configure, lay_out, whole_state

OBJECTIVES = {
    "clip": "{name: clip, image: {registers: 2}, spectrum: {class_token: true}}",
    "dinov2": "{name: dinov2, image: {registers: 2}}",
    "masked_spectrum": "{name: masked_spectrum, spectrum: {class_token: true}}",
}
SMALL = {
    "clip": "{name: clip, image: {width: 16, depth: 2, heads: 2, crop: 24, patch: 12, registers: 2}, "
    "spectrum: {width: 16, depth: 1, heads: 2, class_token: true}, head: {embedding: 8}}",
    "dinov2": "{name: dinov2, image: {width: 16, depth: 2, heads: 2, crop: 24, patch: 12, registers: 2}, "
    "global_views: {count: 2, size: 24}, local_views: {count: 2, size: 12}, "
    "head: {layers: 2, hidden: 8, bottleneck: 4, prototypes: 16}}",
    "masked_spectrum": "{name: masked_spectrum, spectrum: {width: 16, depth: 1, heads: 2, class_token: true}}",
}


def model(objective: str) -> nn.Module:
    run = "data: x, run: x, length: 10 steps, batch: {global_size: 16}, optimizer: {lr: 1}"
    config, steps = parse_config(f"{{{run}, objective: {objective}}}", "test"), RunSteps(10, 10, 16)
    return objective_of(Setting(config, ImageLayout(), SpectrumLayout(), True, steps, torch.device("cpu"))).build()


@pytest.mark.parametrize("name", list(SMALL))
def test_every_tensor_gets_a_value_and_teachers_start_as_their_students(name: str) -> None:
    module = model(SMALL[name])
    initialise(module, InitialValues(module, seed=0), torch.device("cpu"))
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert len(state) >= 20
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())
    teacher = {name for name in state if name.startswith("teacher.")}
    assert bool(teacher) == (name == "dinov2")
    for key in teacher:
        assert torch.equal(state[key], state[key.replace("teacher.", "student.", 1)]), key


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_models_of_published_size_take_no_memory(name: str) -> None:
    module = model(OBJECTIVES[name])
    assert sum(parameter.numel() for parameter in module.parameters()) > 40e6
    assert all(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])
    InitialValues(module, seed=0)


class Forgetful(nn.Module):
    """With one parameter that nobody declares."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.gain = nn.Parameter(torch.empty(2))


def test_a_forgotten_tensor_is_refused_by_its_name() -> None:
    with pytest.raises(TypeError, match=r"1\.gain: Forgetful declares no initial value"):
        InitialValues(nn.Sequential(nn.Linear(2, 2), Forgetful()), seed=0)


def test_values_follow_seed_and_name_alone_and_what_was_trained_before_goes_first() -> None:
    module = TinyPair()
    values, other = InitialValues(module, seed=1), InitialValues(module, seed=2)
    name = "student.encoder.blocks.1.mlp.0.weight"
    assert torch.equal(values(name), values(name))
    assert not torch.equal(values(name), other(name))
    assert not torch.equal(values(name), values(name.replace("blocks.1", "blocks.2")))
    # The published deviation, cut at two sigma: what remains has 0.88 of it.
    assert values(name).std() == pytest.approx(0.88 * 0.02, rel=0.1)
    assert values(name).abs().max() <= 0.04

    def trained(name: str, shape: Sequence[int]) -> torch.Tensor | None:
        return torch.full(tuple(shape), 7.0) if name.endswith("position") else None

    started = InitialValues(module, seed=1, pretrained=trained)
    assert (started("student.encoder.position") == 7).all()
    assert torch.equal(started(name), values(name))


@pytest.fixture(scope="module")
def one_rank() -> Iterator[RankPool]:
    pool = RankPool(1)
    yield pool
    pool.close()


def digests(state: dict[str, torch.Tensor]) -> dict[str, str]:
    return {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in state.items()}


def first_weights(engine_name: str) -> dict[str, str]:
    state = whole_state(lay_out(configure(engine_name)))
    return digests({name: value for name, value in state.items() if name.startswith("model.")})


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "zero3"])
def test_same_values_under_every_engine_and_number_of_ranks(
    engine: str, one_rank: RankPool, two_ranks: RankPool, four_ranks: RankPool
) -> None:
    plain = TinyPair()
    initialise(plain, InitialValues(plain, seed=0))
    expected = digests({f"model.{name}": value for name, value in plain.state_dict().items()})
    for ranks in (one_rank, two_ranks, four_ranks):
        assert all(found == expected for found in ranks.run(first_weights, engine))
