"""Self-distillation is the same under every engine, world size and micro-batch, with all that compares samples on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from astroclip_dist.parallel.process_group import join, leave
from tests.bare_training import BareTraining
from tests.rank_pool import RankPool
from tests.unit.dinov2_training import data, training

__all__ = ["data"]
ENGINES = {
    "ddp": "{name: ddp}",
    "fsdp": "{name: fsdp}",
    "fsdp-kept": "{name: fsdp, reshard_after_forward: false, recompute: full}",
    "zero1": "{name: deepspeed, zero_stage: 1}",
    "zero2": "{name: deepspeed, zero_stage: 2}",
    "zero3": "{name: deepspeed, zero_stage: 3}",
}
STEPS = 4
Curve = list[tuple[float, float]]


def session(data: str, engine: str, targets: str = "centring", micro_size: str = "null") -> BareTraining:
    """Of 16 samples in 4 lanes."""
    options = f"targets: {targets}\n  drop_path: 0.3\n  frozen_prototypes: 1 steps"
    return training(data, options, micro_size, engine=ENGINES.get(engine, engine), samples=16, lanes=4)


def curve(data: str, engine: str, targets: str = "centring", micro_size: str = "null") -> Curve:
    """Losses of the global batch, and gradient norms."""
    return session(data, engine, targets, micro_size).train(0, STEPS)


@pytest.fixture(scope="module")
def expected(data: str) -> dict[str, Curve]:
    """Of one process, by how targets are made."""
    ranks = join("cpu", 60.0)
    curves = {targets: curve(data, "ddp", targets) for targets in ("centring", "sinkhorn")}
    leave(ranks)
    return curves


def check(found: list[Curve], expected: Curve) -> None:
    for of_rank in found:
        torch.testing.assert_close(torch.tensor(of_rank), torch.tensor(expected), rtol=2e-5, atol=0)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_two_ranks_train_as_one(data: str, engine: str, two_ranks: RankPool, expected: dict[str, Curve]) -> None:
    check(two_ranks.run(curve, data, engine), expected["centring"])


@pytest.mark.parametrize(
    ("engine", "targets"),
    [("ddp", "sinkhorn"), ("fsdp", "centring"), ("fsdp", "sinkhorn"), ("zero2", "centring"), ("zero3", "sinkhorn")],
)
def test_micro_batches_change_nothing(
    data: str, engine: str, targets: str, two_ranks: RankPool, expected: dict[str, Curve]
) -> None:
    check(two_ranks.run(curve, data, engine, targets, "4"), expected[targets])


@pytest.mark.parametrize("targets", ["centring", "sinkhorn"])
def test_four_ranks_train_as_one(data: str, targets: str, four_ranks: RankPool, expected: dict[str, Curve]) -> None:
    check(four_ranks.run(curve, data, "fsdp", targets), expected[targets])


def train_and_save(data: str, engine: str, run: str) -> None:
    trained = session(data, engine)
    trained.train(0, 2)
    trained.save(run, 2)


def restore_and_train(data: str, engine: str, run: str) -> Curve:
    trained = session(data, engine)
    assert trained.restore(run) == 2
    return trained.train(2, STEPS)


@pytest.mark.parametrize(("saved_by", "restored_by"), [("fsdp", "zero3"), ("zero3", "ddp"), ("zero2", "fsdp")])
def test_teacher_and_centres_move_between_engines(
    data: str, saved_by: str, restored_by: str, tmp_path: Path, two_ranks: RankPool, expected: dict[str, Curve]
) -> None:
    two_ranks.run(train_and_save, data, saved_by, str(tmp_path))
    check(two_ranks.run(restore_and_train, data, restored_by, str(tmp_path)), expected["centring"][2:])


def test_teacher_and_centres_move_between_world_sizes(
    data: str, tmp_path: Path, two_ranks: RankPool, four_ranks: RankPool, expected: dict[str, Curve]
) -> None:
    four_ranks.run(train_and_save, data, "fsdp", str(tmp_path))
    check(two_ranks.run(restore_and_train, data, "ddp", str(tmp_path)), expected["centring"][2:])


def in_bf16(data: str, engine: str) -> tuple[Curve, bool]:
    """Losses and norms, and whether the teacher has moved away from the student and stayed in fp32."""
    trained = session(data, engine, "sinkhorn", "4")
    found = trained.train(0, STEPS)
    state = trained.engine.state()
    teacher = {name: value for name, value in state.items() if name.startswith("model.teacher.")}
    apart = [not torch.equal(value, state[name.replace("teacher", "student", 1)]) for name, value in teacher.items()]
    return found, any(apart) and all(value.dtype == torch.float32 for value in teacher.values())


@pytest.mark.parametrize(
    "engine", ["{name: ddp, precision: bf16}", "{name: fsdp, precision: bf16}"], ids=["ddp", "fsdp"]
)
def test_bf16_trains_alike(data: str, engine: str, two_ranks: RankPool, expected: dict[str, Curve]) -> None:
    for found, teacher_is_fine in two_ranks.run(in_bf16, data, engine):
        assert teacher_is_fine
        for (loss, norm), (exact, exact_norm) in zip(found, expected["sinkhorn"], strict=True):
            assert loss == pytest.approx(exact, rel=0.01)
            assert norm == pytest.approx(exact_norm, rel=0.1)
