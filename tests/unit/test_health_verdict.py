"""Who is to blame for a run that stands still."""

from __future__ import annotations

import pytest

from astroclip_dist.train.health.verdict import Whereabouts, judge

WAITING = Whereabouts("agree", 120, 33.0, 1201)
HANGING = Whereabouts("backward", 120, 31.4, 1199)


@pytest.mark.parametrize(
    ("answers", "silent", "ranks", "message"),
    [
        (
            {0: WAITING, 1: HANGING, 2: WAITING},
            [],
            [1],
            "rank 1 hangs in backward since 31 s at step 120 (the others wait for it)",
        ),
        # A rank that is elsewhere because it waits in an earlier collective than the others is not to blame.
        (
            {0: Whereabouts("loss", 120, 40.0, 1200), 1: WAITING, 2: Whereabouts("data", 120, 29.0, 1197)},
            [],
            [2],
            "rank 2 hangs in data since 29 s at step 120 (the others wait for it)",
        ),
        (
            {0: WAITING, 1: HANGING, 2: HANGING},
            [],
            [1, 2],
            "rank 1 hangs in backward since 31 s at step 120, rank 2 hangs in backward since 31 s at step 120 "
            "(the others wait for them)",
        ),
        (
            {0: WAITING, 1: WAITING},
            [],
            [0, 1],
            "rank 0 hangs in agree since 33 s at step 120, rank 1 hangs in agree since 33 s at step 120: "
            "none is behind the others, so look at what they all use (network, storage, devices)",
        ),
        ({0: Whereabouts("setup", None, 1800.0, 3)}, [], [0], "rank 0 hangs in setup since 1800 s"),
        (
            {0: WAITING, 2: HANGING},
            [1, 3],
            [1, 3],
            "ranks 1, 3 do not answer (stopped, or the node is gone); rank 0 is in agree since 33 s at step 120",
        ),
        # Who answers is not blamed, however far behind it is.
        (
            {0: HANGING, 1: WAITING},
            [2],
            [2],
            "rank 2 does not answer (stopped, or the node is gone); rank 1 is in agree since 33 s at step 120",
        ),
    ],
)
def test_the_rank_with_the_fewest_collectives_is_waited_for(
    answers: dict[int, Whereabouts], silent: list[int], ranks: list[int], message: str
) -> None:
    verdict = judge(answers, silent)
    assert list(verdict.ranks) == ranks
    assert verdict.message == message


def test_a_message_stays_short_however_many_ranks_hang() -> None:
    answers = dict.fromkeys(range(1000), HANGING) | {1000: WAITING}
    verdict = judge(answers, [])
    assert list(verdict.ranks) == list(range(1000))
    assert verdict.message.endswith("and 996 more (the others wait for them)")
    assert len(verdict.message) < 400
    assert "ranks 0, 1, 2, 3 and 996 more do not answer" in judge({1000: WAITING}, range(1000)).message
