"""What the watchdog is made of: phases, calls that are not waited for, stacks, the notes of an inquiry, timeouts."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from astroclip_dist.parallel import phase
from astroclip_dist.parallel.process_group import Ranks, collectives_entered, join, leave, set_timeout
from astroclip_dist.train.health.bounded import bounded
from astroclip_dist.train.health.inquiry import Inquiry
from astroclip_dist.train.health.stacks import thread_stacks
from astroclip_dist.train.health.stragglers import INTERVALS, Stragglers
from astroclip_dist.train.health.verdict import Verdict, Whereabouts
from tests.rank_pool import RankPool


@pytest.fixture(scope="module")
def alone() -> Iterator[Ranks]:
    ranks = join("cpu", 60.0)
    yield ranks
    leave(ranks)


def test_phases_and_the_seconds_spent_on_ones_own() -> None:
    phase.begin()
    assert phase.current()[:2] == ("setup", None)
    assert not phase.current().settled
    for name, seconds in (("data", 0.02), ("prepare", 0.0), ("backward", 0.03), ("agree", 0.0)):
        phase.enter(name, 7 if name == "data" else None)
        time.sleep(seconds)
    phase.settle()
    now = phase.current()
    assert (now.name, now.step, now.settled) == ("agree", 7, True)
    own = phase.take_own_seconds()
    # Of backward nobody can say how much of it was waiting; agree is not over.
    assert own.keys() == {"setup", "data", "prepare"}
    assert 0.02 <= own["data"] < 1.0
    assert phase.take_own_seconds() == {}


def test_a_call_is_waited_for_only_so_long() -> None:
    never = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer in 0\.1 s"):
        bounded(never.wait, 0.1)
    never.set()
    assert bounded(lambda: 5, 10.0) == 5
    assert bounded(lambda: None, 10.0) is None
    with pytest.raises(KeyError):
        bounded(lambda: dict[str, int]()["absent"], 10.0)


def test_stacks_of_all_threads_but_the_one_that_asks() -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(thread_stacks()), name="asks")
    thread.start()
    thread.join()
    assert found[0].startswith("thread MainThread:")
    assert "test_stacks_of_all_threads_but_the_one_that_asks" in found[0]
    assert "thread asks" not in found[0]


def test_timeouts_of_all_groups_and_their_collectives(alone: Ranks) -> None:
    group = dist.new_group([0])
    assert isinstance(group, dist.ProcessGroup)
    before = collectives_entered()
    dist.all_reduce(torch.ones(1))
    dist.all_reduce(torch.ones(1), group=group)
    assert collectives_entered() == before + 2
    set_timeout(12.0)
    for each in (dist.group.WORLD, group):
        assert each is not None
        assert each._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=12)


def ask_each_other(name: str) -> tuple[bool, bool, dict[int, Whereabouts], Verdict | None]:
    """The first rank has not been asked before it asks; the second stays silent at first."""
    rank = dist.get_rank()
    inquiry = Inquiry(name, rank, 2)
    asked_before = inquiry.is_asked()
    dist.barrier()
    here = Whereabouts("agree", 4, 1.5, 17 + rank)
    is_judge = rank == 0 and inquiry.ask()
    dist.barrier()
    assert inquiry.is_asked()
    if rank == 0:
        inquiry.answer(here)
        assert inquiry.answers(time.monotonic() + 0.1) == {0: here}
        assert inquiry.verdict(time.monotonic()) is None
    dist.barrier()
    if rank == 1:
        assert not inquiry.ask()
        inquiry.answer(here)
    answers = inquiry.answers(time.monotonic() + 30.0)
    if is_judge:
        inquiry.publish(Verdict([1], "rank 1 hangs"))
    return is_judge, asked_before, answers, inquiry.verdict(time.monotonic() + 30.0)


def test_one_rank_judges_by_what_all_say(two_ranks: RankPool) -> None:
    answers = {rank: Whereabouts("agree", 4, 1.5, 17 + rank) for rank in (0, 1)}
    verdict = Verdict([1], "rank 1 hangs")
    assert two_ranks.run(ask_each_other, "test_one_rank_judges") == [
        (True, False, answers, verdict),
        (False, False, answers, verdict),
    ]


def slow_second_rank(log_file: str) -> list[dict[str, float]]:
    rank = dist.get_rank()
    handler = logging.FileHandler(log_file)
    logging.getLogger("astroclip_dist").addHandler(handler)
    phase.begin()
    stragglers = Stragglers(Ranks(rank, 2, rank, torch.device("cpu"), made_group=False))
    found = []
    for _ in range(INTERVALS + 1):
        phase.enter("prepare")
        time.sleep(0.3 if rank == 1 else 0.05)
        phase.enter("backward")
        dist.barrier()
        phase.enter("log")
        found.append(stragglers.figures())
    logging.getLogger("astroclip_dist").removeHandler(handler)
    return found


def test_the_slowest_rank_is_told_once_it_stays_slow(two_ranks: RankPool, tmp_path: Path) -> None:
    first, second = two_ranks.run(slow_second_rank, str(tmp_path / "log"))
    assert first == second
    assert [figures["slowest_rank"] for figures in first] == [1.0] * (INTERVALS + 1)
    assert all(2.0 < figures["slowest_over_median"] < 8.0 for figures in first)
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.startswith("rank 1 holds the others up: it spends ")
    assert line.endswith("of the time, most of it in prepare")


def test_a_rank_that_is_alone_has_nobody_to_compare_with(alone: Ranks) -> None:
    assert Stragglers(alone).figures() == {}


HANGING_RANK = """
import logging, sys, time
from astroclip_dist.config.run import Health
from astroclip_dist.parallel import phase
from astroclip_dist.parallel.process_group import join
from astroclip_dist.store import Store
from astroclip_dist.train.health import watchdog

def broken():
    raise ValueError("no such group")

logging.basicConfig(format="%(message)s")
watchdog.collectives_entered = broken
phase.begin()
phase.settle()
with watchdog.Watchdog(Store(sys.argv[1]), join("cpu", 60.0), Health(hang_deadline="1 s")):
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_watchdog_that_cannot_say_where_a_rank_hangs_ends_it_all_the_same_and_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGING_RANK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 70
    assert "ends this rank, and cannot say where it hangs: ValueError('no such group')" in done.stderr
