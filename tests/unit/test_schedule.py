"""The learning rate: its shape, its ends, and that nothing but the step decides it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astroclip_dist.config.schedule import WarmupCosine

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
