"""Every engine trains the same: equal losses, states that move between them, bad gradients that change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from astroclip_dist.parallel.engines import StepRates
from tests.bare_training import BareTraining
from tests.random_survey import write_random_survey
from tests.rank_pool import RankPool

ENGINES = {
    "ddp": "{name: ddp}",
    "fsdp": "{name: fsdp}",
    "zero1": "{name: deepspeed, zero_stage: 1}",
    "zero2": "{name: deepspeed, zero_stage: 2}",
    "zero3": "{name: deepspeed, zero_stage: 3}",
}
STEPS = 4
TINY = """
run: unused
length: 10 steps
batch: {{global_size: 16, lanes: 4, window_shards: 1, micro_size: {micro_size}}}
optimizer: {{lr: 1e-3}}
engine: {engine}
data: {data}
objective:
  learn_logit_scale: true
  image: {{width: 32, depth: 2, heads: 4, crop: 18, patch: 6}}
  spectrum: {{width: 32, depth: 2, heads: 4}}
  head: {{embedding: 16, dropout: {dropout}}}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("random-survey")
    write_random_survey(str(folder), 100)
    return folder.as_uri()


def session(data: str, engine: str, micro_size: str = "null", dropout: float = 0.0) -> BareTraining:
    return BareTraining(TINY.format(data=data, engine=ENGINES[engine], micro_size=micro_size, dropout=dropout))


def losses(data: str, engine: str, micro_size: str = "null", dropout: float = 0.0) -> list[tuple[float, float]]:
    return session(data, engine, micro_size, dropout).train(0, STEPS)


def train_and_save(data: str, engine: str, run: str) -> None:
    training = session(data, engine)
    training.train(0, 2)
    training.save(run, 2)


def load_and_train(data: str, engine: str, run: str) -> list[tuple[float, float]]:
    training = session(data, engine)
    assert training.restore(run) == 2
    return training.train(2, STEPS)


def state_around_a_bad_step(data: str, engine: str) -> tuple[float, bool, float]:
    """The norm of a step with NaN pixels, whether it left the state alone, and the loss of a good step after it."""
    training = session(data, engine)
    training.train(0, 1)
    before = {name: value.clone() for name, value in training.engine.state().items()}
    (good,) = training.batches(1, 2)
    members = {name: value.clone() for name, value in good.members.items()}
    if training.ranks.rank == 0:
        members["image"][0] = torch.nan
    # Without the loop's agreement on the loss: the engine itself must see it.
    training.objective.accumulate(training.engine, training.objective.prepare(replace(good, members=members)), 1)
    norm = training.engine.step(StepRates(1e-3, 0.05)).item()
    after = training.engine.state()
    same = all(torch.equal(_local(before[name]), _local(after[name])) for name in before)
    loss, _ = training.step(good, 1)
    return norm, same, loss


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@pytest.fixture(scope="module")
def expected(data: str, two_ranks: RankPool) -> list[tuple[float, float]]:
    return two_ranks.run(losses, data, "ddp")[0]


def close(found: list[tuple[float, float]], expected: list[tuple[float, float]]) -> bool:
    return torch.allclose(torch.tensor(found), torch.tensor(expected), rtol=2e-5, atol=0)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_same_losses_and_norms_under_every_engine(
    data: str, engine: str, two_ranks: RankPool, expected: list[tuple[float, float]]
) -> None:
    for found in two_ranks.run(losses, data, engine):
        assert close(found, expected), (found, expected)


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "zero2", "zero3"])
def test_micro_batches_change_nothing(
    data: str, engine: str, two_ranks: RankPool, expected: list[tuple[float, float]]
) -> None:
    for found in two_ranks.run(losses, data, engine, "2"):
        assert close(found, expected), (found, expected)


def test_four_ranks_train_as_two(data: str, four_ranks: RankPool, expected: list[tuple[float, float]]) -> None:
    assert close(four_ranks.run(losses, data, "fsdp")[0], expected)


def test_micro_batches_see_the_same_dropout_in_both_passes(data: str, two_ranks: RankPool) -> None:
    first = two_ranks.run(losses, data, "ddp", "4", 0.3)[0]
    assert first == two_ranks.run(losses, data, "ddp", "4", 0.3)[0]


@pytest.mark.parametrize(
    ("saved_by", "loaded_by"),
    [("ddp", "fsdp"), ("fsdp", "zero3"), ("zero2", "ddp"), ("zero3", "zero1"), ("zero1", "fsdp")],
)
def test_states_move_between_engines(
    data: str,
    saved_by: str,
    loaded_by: str,
    tmp_path: Path,
    two_ranks: RankPool,
    expected: list[tuple[float, float]],
) -> None:
    two_ranks.run(train_and_save, data, saved_by, str(tmp_path))
    assert close(two_ranks.run(load_and_train, data, loaded_by, str(tmp_path))[0], expected[2:])


def test_states_move_between_world_sizes(
    data: str, tmp_path: Path, two_ranks: RankPool, four_ranks: RankPool, expected: list[tuple[float, float]]
) -> None:
    four_ranks.run(train_and_save, data, "fsdp", str(tmp_path))
    assert close(two_ranks.run(load_and_train, data, "fsdp", str(tmp_path))[0], expected[2:])


@pytest.mark.parametrize("engine", list(ENGINES))
def test_bad_gradients_change_nothing_on_any_rank(
    data: str, engine: str, two_ranks: RankPool, expected: list[tuple[float, float]]
) -> None:
    for norm, same, loss in two_ranks.run(state_around_a_bad_step, data, engine):
        assert not torch.isfinite(torch.tensor(norm))
        assert same
        assert loss == pytest.approx(expected[1][0], rel=2e-5)
