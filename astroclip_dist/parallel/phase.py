"""What this rank does now. A process is one rank, so this is the state of the process, and any thread may read it."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import NamedTuple

# In these a rank waits for the other ranks, or may; what it spends in all others is its own time.
SHARED = frozenset({"loss", "backward", "agree", "step"})


class Phase(NamedTuple):
    """
    Attributes:
        name: setup, data, prepare, forward, loss, backward, agree, step, log, save, finish.
        step: of the run; None before the first one.
        since: ``time.monotonic()`` when it began.
        settled: whether a step was done in this process: allocating, compiling and connecting are over.
    """

    name: str
    step: int | None
    since: float
    settled: bool


_now = Phase("setup", None, time.monotonic(), False)
_spent: defaultdict[str, float] = defaultdict(float)


def begin() -> None:
    """A training begins in this process."""
    global _now
    _spent.clear()
    _now = Phase("setup", None, time.monotonic(), False)


def enter(name: str, step: int | None = None) -> None:
    """The training thread turns to something else.

    Args:
        step: which it now works at; the same as before if None.
    """
    global _now
    before, when = _now, time.monotonic()
    _spent[before.name] += when - before.since
    _now = Phase(name, before.step if step is None else step, when, before.settled)


def settle() -> None:
    """A first step is done."""
    global _now
    _now = _now._replace(settled=True)


def current() -> Phase:
    return _now


def take_own_seconds() -> dict[str, float]:
    """What this rank spent since the last call on its own, not waiting for others, by phase; phases that are over."""
    own = {name: seconds for name, seconds in _spent.items() if name not in SHARED}
    _spent.clear()
    return own
