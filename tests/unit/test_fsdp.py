"""What FSDP does with blocks and heads: what is gathered when, and what stays gathered."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from tests.rank_pool import RankPool
from tests.tiny_pair import TinyPair, configure, images, lay_out


def gathered_ahead(engine_name: str, options: str) -> list[str]:
    """What was gathered before its turn in one forward and backward, in order."""
    engine = lay_out(configure(engine_name, options))
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        engine.backward(engine.forward(images(0))[0], last=True)
    events = sorted(seen.events(), key=lambda event: event.time_range.start)
    return [e.name.removeprefix("FSDP::") for e in events if e.name.startswith("FSDP::") and "_prefetch for" in e.name]


@pytest.mark.parametrize(
    ("engine", "ahead"), [("fsdp", {0: [1], 1: [2], 2: []}), ("fsdp, kept", {0: [1, 2], 1: [2], 2: []})]
)
def test_the_next_blocks_are_gathered_while_one_computes(
    engine: str, ahead: dict[int, list[int]], two_ranks: RankPool
) -> None:
    found = two_ranks.run(gathered_ahead, engine, "")[0]
    forward = [f"forward_prefetch for {branch}.encoder.blocks." for branch in ("teacher", "student")]
    for beginning in forward:
        wanted = [f"{beginning}{block}" for blocks in ahead.values() for block in blocks]
        # What is gathered already is not gathered again, but asked for.
        assert [name for name in found if name.startswith(beginning)] == wanted
    # The teacher has no backward.
    assert not any("backward_prefetch for teacher" in name for name in found)
    backward = [name[-1] for name in found if name.startswith("backward_prefetch for student.encoder.blocks.")]
    assert sorted(set(backward), reverse=True) == list(dict.fromkeys(backward)) == ["2", "1", "0"]


def after_forward(engine_name: str, precision: str) -> tuple[dict[str, bool], dict[str, bool], torch.dtype, bool]:
    """Which parameters are gathered after a forward, and after what follows; the gradients' type, and whether they
    hold more than bf16 can."""
    engine = lay_out(configure(engine_name, f", precision: {precision}"))
    module = engine.module
    assert isinstance(module, TinyPair)
    loss, _ = engine.forward(images(0))

    def gathered() -> dict[str, bool]:
        parts = {
            "first block": module.student.encoder.blocks[0].mlp[0].weight,
            "teacher's first block": module.teacher.encoder.blocks[0].mlp[0].weight,
            "teacher's head": module.teacher.head.prototypes,
        }
        return {name: not isinstance(parameter, DTensor) for name, parameter in parts.items()}

    during = gathered()
    engine.backward(loss, last=True)
    gradients = [p.grad.to_local() for p in module.student.parameters() if isinstance(p.grad, DTensor)]
    (dtype,) = {gradient.dtype for gradient in gradients}
    exact = any((gradient != gradient.bfloat16().float()).any().item() for gradient in gradients)
    engine.average(module.teacher, module.student, 0.9)
    return during, gathered(), dtype, exact


@pytest.mark.parametrize(("engine", "kept"), [("fsdp", False), ("fsdp, kept", True)])
def test_units_are_freed_after_forward_or_kept_until_backward(engine: str, kept: bool, two_ranks: RankPool) -> None:
    for during, after, dtype, exact in two_ranks.run(after_forward, engine, "bf16"):
        assert set(during.values()) == {kept}
        assert set(after.values()) == {False}
        # Parameters compute in bf16, but what ranks add up is fp32.
        assert dtype == torch.float32
        assert exact
