"""A run that loses a worker again and again ends as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.kill_loop import EVERY, kill_loop


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    run = kill_loop(tmp_path, kills=20, seed=5)
    assert run.differences == []
    assert run.kills == 20
    # Some hit the training, some the start-up; none costs more than what two saves, one under way, do not hold.
    assert 3 <= len(run.lost) < 20
    assert all(0 <= steps <= 2 * EVERY for steps in run.lost)
    assert run.computed == run.steps + sum(run.lost)
