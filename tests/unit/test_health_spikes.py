"""Loss spikes: judged from the history of agreed losses, and alike after a restart."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astroclip_dist.config.run import Health
from astroclip_dist.train.health.skips import NOT_FINITE, SPIKE, why_skip
from astroclip_dist.train.health.spikes import HORIZON, LossHistory

POLICY = Health(loss_spike=6.0)


def history(losses: list[float]) -> LossHistory:
    found = LossHistory()
    for loss in losses:
        found = found.after(loss)
    return found


def test_the_first_steps_have_the_plain_mean_and_variance() -> None:
    losses = np.random.default_rng(0).normal(3.0, 0.5, HORIZON)
    found = history(losses.tolist())
    assert found.mean == pytest.approx(losses.mean())
    assert found.variance == pytest.approx(losses.var())


def test_older_losses_are_forgotten() -> None:
    rng = np.random.default_rng(0)
    found = history([*rng.normal(10, 2, 500), *rng.normal(3, 0.5, 1000)])
    assert found.mean == pytest.approx(3.0, abs=0.2)
    assert math.sqrt(found.variance) == pytest.approx(0.5, rel=0.3)


def test_only_what_stands_out_upwards_is_skipped_and_nothing_before_the_warm_up() -> None:
    losses = np.random.default_rng(1).normal(3.0, 0.5, HORIZON).tolist()
    judged = history(losses)
    assert why_skip(1e6, history(losses[:-1]), POLICY) is None
    assert why_skip(3.0 + 0.5 * 5, judged, POLICY) is None
    assert why_skip(3.0 + 0.5 * 8, judged, POLICY) == SPIKE
    assert why_skip(-1e6, judged, POLICY) is None
    assert why_skip(1e6, judged, Health()) is None
    for loss in (math.nan, math.inf, -math.inf):
        assert why_skip(loss, judged, Health()) == NOT_FINITE


def test_a_constant_loss_has_no_spikes_within_its_rounding() -> None:
    judged = history([2.5] * 100)
    assert why_skip(2.5 * (1 + 2e-7), judged, POLICY) is None
    assert why_skip(2.6, judged, POLICY) == SPIKE
    assert why_skip(0.0, history([0.0] * 100), POLICY) is None


@given(st.lists(st.floats(-1e6, 1e6, width=32), max_size=120), st.integers(0, 120))
def test_a_restart_judges_bit_for_bit_alike(losses: list[float], at: int) -> None:
    through_a_checkpoint = LossHistory(**json.loads(json.dumps(history(losses[:at]).about())))
    for loss in losses[at:]:
        through_a_checkpoint = through_a_checkpoint.after(loss)
    assert through_a_checkpoint == history(losses)


def test_a_spike_is_told_in_a_long_run_of_falling_losses() -> None:
    """As a training's: the mean falls by far more than the noise, and only the two spikes are found."""
    rng = np.random.default_rng(2)
    falling = 2 + 4 * np.exp(-np.arange(1000) / 150) + rng.normal(0, 0.1, 1000)
    falling[[400, 800]] += 3
    found, skipped = LossHistory(), []
    for step, loss in enumerate(falling.tolist()):
        if why_skip(loss, found, POLICY):
            skipped.append(step)
        else:
            found = found.after(loss)
    assert skipped == [400, 800]
