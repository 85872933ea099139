"""Notices that a run stands still, finds the rank that the others wait for, says so once, and ends the processes.

A thread of each rank looks at how long the rank has been in its phase. Over the deadline it asks all ranks where they
are; the first to ask judges (``verdict``). Nothing here uses a collective, the training thread, or its connections.
"""

from __future__ import annotations

import faulthandler
import itertools
import logging
import os
import sys
import threading
import time
from types import TracebackType
from typing import Self

from astroclip_dist.config.run import Health
from astroclip_dist.errors import StorageError
from astroclip_dist.parallel import phase
from astroclip_dist.parallel.process_group import Ranks, collectives_entered
from astroclip_dist.store import Store
from astroclip_dist.train.event_log import EventLog
from astroclip_dist.train.health.bounded import bounded
from astroclip_dist.train.health.inquiry import Inquiry
from astroclip_dist.train.health.stacks import thread_stacks
from astroclip_dist.train.health.verdict import Verdict, Whereabouts, judge

# As a crash that a restart may cure.
EXIT_CODE = 70
STACKS_FOLDER = "stacks"
_DONE = Whereabouts("finish", None, 0.0, sys.maxsize)
# Shares of the deadline, and what they are at most (seconds): how often it looks; how long a rank may take to answer;
# how long writing may take, where storage may be what hangs.
_LOOK, _ANSWER, _WRITE = (0.05, 5.0), (0.4, 30.0), (0.2, 10.0)
# How much of the time between two looks counts at most, as a share of the deadline.
_SHARE_AT_ONCE = 0.25
_FIRST, _SECOND = 0, 1
_STDERR = 2
# The rank that keeps the store leaves last, so that the others hear the verdict.
_LAST_S = 1.0
# All ranks make them in the same order.
_numbers = itertools.count()
log = logging.getLogger(__name__)


class Watchdog:
    """Watches over this rank from its start to its end, as a context; every rank has one."""

    def __init__(self, run: Store, ranks: Ranks, health: Health) -> None:
        self._run, self._ranks, self._health = run, ranks, health
        self._look_s, self._answer_s, self._write_s = (
            min(share * health.hang_deadline, most) for share, most in (_LOOK, _ANSWER, _WRITE)
        )
        self._inquiry = Inquiry(f"watchdog/{next(_numbers)}", ranks.rank, ranks.world_size)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(self._look_s + self._write_s)
        faulthandler.cancel_dump_traceback_later()
        if error is None:
            try:
                # A rank that is slower to end must not take this one for one that hangs.
                bounded(lambda: self._inquiry.answer(_DONE), self._write_s)
            except (RuntimeError, TimeoutError):
                log.debug("the store is closed")

    def _watch(self) -> None:
        watched, stood, looked = phase.current(), 0.0, time.monotonic()
        while not self._ended.wait(self._look_s):
            now, when = phase.current(), time.monotonic()
            allowed = self._health.hang_deadline if now.settled else self._health.startup_timeout
            # Counted while this thread runs: a job or a machine that was suspended does not hang when it wakes up.
            stood = stood + min(when - looked, _SHARE_AT_ONCE * allowed) if now is watched else 0.0
            watched, looked = now, when
            # For a training thread that keeps the interpreter's lock, so that this thread cannot run either.
            faulthandler.dump_traceback_later(2 * allowed, file=_STDERR)
            try:
                asked, can_ask = bounded(self._inquiry.is_asked, self._write_s), True
            except (RuntimeError, TimeoutError):
                asked, can_ask = False, False
            if (stood > allowed or asked) and not self._ended.is_set():
                self._leave(can_ask)

    def _leave(self, can_ask: bool) -> None:
        """End the process, after it has said why; even that may hang, such as writing to a log that nobody reads."""
        try:
            bounded(lambda: self._report(can_ask), 2 * self._answer_s + 5 * self._write_s + _LAST_S)
        except Exception as error:
            why = error
            bounded(lambda: log.error("the watchdog ends this rank, and cannot say where it hangs: %r", why), _LAST_S)
        finally:
            os._exit(EXIT_CODE)

    def _report(self, can_ask: bool) -> None:
        """Say where this rank is, hear or pass the verdict, leave the stacks behind."""
        here, stacks = self._whereabouts(), thread_stacks()
        verdict = None
        try:
            if can_ask:
                verdict = bounded(lambda: self._find_verdict(here), 2 * (self._answer_s + self._write_s))
        except (RuntimeError, TimeoutError):
            can_ask = False
        if not can_ask:
            # Without the store the ranks cannot agree who is to say it: all do, and the second writes it down.
            verdict = judge({self._ranks.rank: here}, [_FIRST])
            self._announce(verdict, write=self._ranks.rank == _SECOND)
        if verdict is not None and self._ranks.rank in verdict.ranks:
            log.error("stacks of all threads of rank %d, which hangs:\n%s", self._ranks.rank, stacks)
        name = f"{STACKS_FOLDER}/rank-{self._ranks.rank:05d}-step-{here.step or 0:09d}.txt"
        try:
            bounded(lambda: self._run.put(name, f"{here}\n\n{stacks}".encode()), self._write_s)
        except (StorageError, TimeoutError) as error:
            log.error("%s: cannot be written (%s):\n%s", self._run.locate(name), error, stacks)
        sys.stdout.flush()
        if self._ranks.is_first and self._ranks.world_size > 1:
            time.sleep(_LAST_S)

    def _whereabouts(self) -> Whereabouts:
        now = phase.current()
        return Whereabouts(now.name, now.step, time.monotonic() - now.since, collectives_entered())

    def _find_verdict(self, here: Whereabouts) -> Verdict | None:
        is_judge = self._inquiry.ask()
        self._inquiry.answer(here)
        deadline = time.monotonic() + self._answer_s
        if not is_judge:
            return self._inquiry.verdict(deadline + self._answer_s + self._write_s)
        answers = self._inquiry.answers(deadline)
        verdict = judge(answers, [rank for rank in range(self._ranks.world_size) if rank not in answers])
        self._announce(verdict, write=True)
        self._inquiry.publish(verdict)
        return verdict

    def _announce(self, verdict: Verdict, *, write: bool) -> None:
        log.error("%s; stacks of all threads: %s", verdict.message, self._run.locate(STACKS_FOLDER))
        if write:
            events = EventLog(self._run)
            events.write("hung", ranks=verdict.ranks, message=verdict.message)
            events.close(self._write_s)
