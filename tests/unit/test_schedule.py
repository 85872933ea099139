"""Values that change with the step: their shapes, their ends, and that nothing but the step decides them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astroclip_dist.config.schedule import Cosine, Ramp, RunSteps, WarmupCosine
from astroclip_dist.config.units import TrainingLength

SCHEDULE = WarmupCosine(peak=1e-3, final=1e-5, warmup_steps=10, total_steps=110)


def test_warm_up_is_linear_and_starts_above_zero() -> None:
    assert [SCHEDULE(step) for step in range(10)] == pytest.approx([1e-4 * (step + 1) for step in range(10)])


def test_cosine_from_peak_to_final() -> None:
    assert SCHEDULE(10) == pytest.approx(1e-3)
    assert SCHEDULE(60) == pytest.approx((1e-3 + 1e-5) / 2)
    assert SCHEDULE(35) == pytest.approx(1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi / 4)) / 2)
    assert SCHEDULE(110) == SCHEDULE(500) == pytest.approx(1e-5)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert WarmupCosine(2.0, 0.0, 0, 4)(0) == 2.0


@given(
    peak=st.floats(1e-6, 1.0),
    share=st.floats(0.0, 1.0),
    warmup=st.integers(0, 1000),
    total=st.integers(1, 2000),
)
def test_never_outside_its_bounds_and_falling_after_the_warm_up(
    peak: float, share: float, warmup: int, total: int
) -> None:
    schedule = WarmupCosine(peak, share * peak, warmup, total)
    rates = [schedule(step) for step in range(total + 1)]
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates[: min(warmup, total)])
    after = rates[warmup:]
    assert all(share * peak * (1 - 1e-12) <= rate <= peak * (1 + 1e-12) for rate in after)
    assert all(later <= earlier for earlier, later in pairwise(after))


def test_half_a_cosine_that_may_rise() -> None:
    """The teacher's momentum (DINO, Caron et al. 2021, section 3.2): slow at both ends."""
    momentum = Cosine(0.994, 1.0, 100)
    assert [momentum(step) for step in (0, 50, 100, 400)] == pytest.approx([0.994, 0.997, 1.0, 1.0], abs=1e-12)
    assert momentum(10) - momentum(0) < momentum(55) - momentum(45)


def test_a_ramp_is_a_line_then_constant() -> None:
    temperature = Ramp(0.04, 0.07, 30)
    assert [temperature(step) for step in (0, 10, 30, 31)] == pytest.approx([0.04, 0.05, 0.07, 0.07])


def test_lengths_in_every_unit_are_steps() -> None:
    steps = RunSteps(total=1000, per_epoch=50, global_batch=64)
    assert steps.of(TrainingLength(7, "steps")) == 7
    assert steps.of(TrainingLength(2, "epochs")) == 100
    assert steps.of(TrainingLength(6400, "samples")) == 100
    assert steps.of(TrainingLength(0, "epochs")) == steps.of(None) == 0
