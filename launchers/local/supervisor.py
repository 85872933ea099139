"""The process of its own that sees one job of this machine through: ``python -m launchers.local.supervisor FOLDER``.

It waits for what the job comes after and for the job's turn, runs the command, starts it again, and writes down how it
goes. The lock on its job folder came to it from the process that submitted.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from launchers.jobs.status import JobState
from launchers.local.job_folder import JobFolder, LocalState
from launchers.local.kernel_lock import take_lock
from launchers.local.waiting import LocalJobs

_POLL_S = 0.2
# To ask after other jobs costs more than to look at one's own.
_LOOK_AROUND_S = 1.0
# Exit codes of ``astroclip``.
_FAILED = {1: "failed", 2: "wrong usage or configuration"}
_SAVED_AND_LEFT = 75
_INTERRUPTED = 130
_PR_SET_PDEATHSIG = 1
_CAUSE_TIME_LIMIT = "its time limit was over"
_CAUSE_REQUEUE = "was queued again"


class Supervisor:
    """Of one job; its main thread alone.

    Args:
        folder: of the job, whose lock this process has.
    """

    def __init__(self, folder: JobFolder) -> None:
        self._folder, self._job = folder, folder.job
        self._jobs = LocalJobs(folder.path.parent)
        self._state = LocalState(JobState.PENDING, self._job.place, os.getpid())
        self._ended_by: str | None = None

    def run(self) -> None:
        """See the job through to its end."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_end)
        self._write()
        while (turn := self._wait_for_turn()) is not None:
            try:
                self._run_once(turn)
            finally:
                os.close(turn)

    def _told_to_end(self, number: int, frame: FrameType | None) -> None:
        self._ended_by = signal.Signals(number).name

    def _wait_for_turn(self) -> int | None:
        """The turn's lock; None when the job is over."""
        looked = -_LOOK_AROUND_S
        while not self._state.state.is_over:
            if self._ended_by:
                self._end(JobState.FAILED, self._words_of_own_end())
            elif self._folder.asked("cancel"):
                self._end(JobState.CANCELLED, None)
            elif self._jobs.turn_is_free and self._is_first():
                if (turn := take_lock(self._jobs.turn_lock)) is not None:
                    return turn
            elif time.monotonic() - looked >= _LOOK_AROUND_S:
                looked = time.monotonic()
                if broken := self._jobs.broken_predecessor(self._folder):
                    self._end(JobState.CANCELLED, broken)
            time.sleep(_POLL_S)
        return None

    def _is_first(self) -> bool:
        first = self._jobs.first()
        return first is not None and first.id == self._folder.id

    def _run_once(self, turn: int) -> None:
        """One start of the command, to its end, and what follows from that."""
        restarts = self._state.restarts + (self._state.started is not None)
        self._write(state=JobState.RUNNING, reason=None, restarts=restarts, started=_now())
        # Whoever cancels writes that down before looking whether the job runs: one of the two sees the other.
        if self._folder.asked("cancel"):
            self._end(JobState.CANCELLED, None)
            return
        self._folder.forget("requeue")
        try:
            command = self._start(turn)
        except OSError as error:
            self._end(JobState.FAILED, f"its command cannot be started: {error}")
            return
        self._write(pid=command.pid)
        self._judge(*self._watch(command))

    def _start(self, turn: int) -> subprocess.Popen[bytes]:
        with self._folder.log.open("ab") as log:
            again = f"restart {self._state.restarts} of at most {self._job.max_restarts}"
            log.write(f"--- {_now()} {again if self._state.restarts else 'start'}\n".encode())
            log.flush()
            return subprocess.Popen(
                # -P: modules of the folder where somebody submitted are not ours.
                [sys.executable, "-P", "-m", "astroclip_dist.cli", *self._job.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._job.directory,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self._job.environment},
                # A command that outlives its supervisor for a moment keeps the others waiting for as long.
                pass_fds=(turn,),
                start_new_session=True,
                preexec_fn=_die_with_parent(),
            )

    def _watch(self, command: subprocess.Popen[bytes]) -> tuple[int, str | None]:
        """Wait for the command, and ask it to leave where there is cause.

        Returns:
            Its exit code (negative: died of that signal), and the cause for which it was asked.
        """
        began = looked = time.monotonic()
        cause, deadline = None, float("inf")
        while (code := command.poll()) is None:
            now = time.monotonic()
            if cause is None:
                cause = self._cause_to_leave(now - began, look_around=now - looked > _LOOK_AROUND_S)
                looked = now if now - looked > _LOOK_AROUND_S else looked
                if cause is not None:
                    self._write(reason=f"{cause}: saves and leaves")
                    command.terminate()
                    deadline = now + self._job.grace
            elif now > deadline:
                with suppress(ProcessLookupError):
                    os.killpg(command.pid, signal.SIGKILL)
            time.sleep(_POLL_S)
        return code, cause

    def _cause_to_leave(self, ran_s: float, look_around: bool) -> str | None:
        if self._ended_by:
            return self._words_of_own_end()
        if self._folder.asked("cancel"):
            return "cancelled"
        if self._folder.asked("requeue"):
            return _CAUSE_REQUEUE
        if self._job.time_limit is not None and ran_s > self._job.time_limit:
            return _CAUSE_TIME_LIMIT
        # What could not be started again afterwards is let to its end.
        if look_around and self._state.restarts < self._job.max_restarts:
            first = self._jobs.first()
            if first is not None and first.job.priority > self._job.priority:
                return f"preempted by {first.job.name}"
        return None

    def _judge(self, code: int, cause: str | None) -> None:
        """What becomes of the job after its command has ended."""
        if code == 0:
            self._end(JobState.SUCCEEDED, None)
        elif self._folder.asked("cancel"):
            self._end(JobState.CANCELLED, None)
        elif code in _FAILED:
            self._end(JobState.FAILED, f"exit code {code} ({_FAILED[code]}): {self._folder.last_line()}")
        elif code == _INTERRUPTED:
            self._end(JobState.CANCELLED, f"interrupted (exit code {code})")
        elif self._ended_by:
            self._end(JobState.FAILED, self._words_of_own_end())
        else:
            cause = cause or _in_words(code)
            if self._state.restarts >= self._job.max_restarts:
                self._end(JobState.FAILED, f"{cause}; no restarts left of {self._job.max_restarts}")
            elif cause in (_CAUSE_TIME_LIMIT, _CAUSE_REQUEUE):
                self._write(state=JobState.REQUEUED, reason=cause, pid=None, place=self._jobs.last_place() + 1)
            else:
                self._write(state=JobState.REQUEUED, reason=cause, pid=None)

    def _words_of_own_end(self) -> str:
        return f"its supervisor was told to end ({self._ended_by}): submitted again, it goes on"

    def _end(self, state: JobState, reason: str | None) -> None:
        self._write(state=state, reason=reason, pid=None, ended=_now())

    def _write(self, **changes: Any) -> None:
        self._state = replace(self._state, **changes)
        self._folder.write_state(self._state)


def _die_with_parent() -> Callable[[], None]:
    """Let the kernel kill a child when this process dies, however it dies (prctl(2), PR_SET_PDEATHSIG)."""
    libc, parent = ctypes.CDLL(None), os.getpid()

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(_SAVED_AND_LEFT)

    return prepare


def _in_words(code: int) -> str:
    if code == _SAVED_AND_LEFT:
        return "saved and left, to be started again"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"crashed (exit code {code})"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


if __name__ == "__main__":
    Supervisor(JobFolder(Path(sys.argv[1]))).run()
