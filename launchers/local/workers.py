"""Workers as processes of this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

from astroclip_dist.config import RunConfig
from astroclip_dist.machine_limits import threads_each
from astroclip_dist.store import Store
from astroclip_dist.train.event_log import EventLog
from launchers.exit_codes import CRASHED, PREEMPTED
from launchers.leaving import INTERRUPTED, LeaveSignals

_POLL_S = 0.1
# The others lose their connection to one that failed, and end by themselves with what they know of it.
_FAREWELL_S = 5.0
# Of a run that only its user can mend: the first rank says why when its last records are kept, which may take 12 s.
_LAST_WORDS_S = 15.0
# Beyond the deadline of the save itself: for the step that is under way, and for the records of the run.
_LEAVE_MARGIN_S = 15.0
log = logging.getLogger(__name__)


class LocalWorkers:
    """Starts ``workers`` processes, restarts all of them when one dies, passes on to them the request to leave."""

    def run(self, config: RunConfig) -> int:
        """Train to the end, or until asked to leave. Only the main thread may call this: it takes signals.

        Returns:
            The exit code of the command: 0, 1, 2; 75 when the workers have left to be started again; 130 when they have
            left because of Ctrl-C.
        """
        # One log for all attempts: while the storage is away its lines wait, and the workers do not.
        with LeaveSignals() as signals, EventLog(Store(config.run)) as events:
            attempt = 0
            while (code := self._attempt(config, signals, events, attempt)) is None:
                attempt += 1
            return code

    def _attempt(self, config: RunConfig, signals: LeaveSignals, events: EventLog, attempt: int) -> int | None:
        """Start all workers and judge how they end.

        Returns:
            The exit code of the command, None for another attempt.
        """
        codes = _run_workers(config, signals)
        if refused := [code for code in codes.values() if code in (1, 2)]:
            return max(refused)
        if len(codes) == config.workers and not any(codes.values()):
            return 0
        if signals.interrupted or signals.notice.reason or PREEMPTED in codes.values():
            if PREEMPTED not in codes.values():
                log.warning("left without a save: the steps since the last checkpoint will be done again")
            log.info("the same command goes on with the run")
            return INTERRUPTED if signals.interrupted else PREEMPTED
        cause = "; ".join(f"rank {rank} {_in_words(code)}" for rank, code in codes.items() if code)
        left = config.health.max_restarts - attempt
        log.error("a worker died (%s); %s", cause, f"{left} restarts left" if left else "giving up")
        if left:
            events.write("restarting", cause=cause, attempt=attempt + 1, of=config.health.max_restarts)
            return None
        events.write("failed", error=f"a worker died ({cause}); no restarts left")
        return 1


def _run_workers(config: RunConfig, signals: LeaveSignals) -> dict[int, int]:
    """Run all workers until all have ended well or one has not; then end the others.

    Returns:
        Rank and exit code of those that ended by themselves; negative: died of that signal.
    """
    port = _free_port()
    patience = config.health.preemption_deadline + _LEAVE_MARGIN_S
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(config.workers):
            workers.append(_start(config, rank, port))
        told = False
        deadline = float("inf")
        while len(ended := _ended(workers)) < len(workers):
            now = time.monotonic()
            if signals.at_once or now > deadline:
                break
            if signals.notice.reason and not told:
                log.info("%s: the workers save and leave, %.0f s at most", signals.notice.reason, patience)
                _tell(workers, signals.notice.reason)
                told = True
            if told or PREEMPTED in ended.values():
                deadline = min(deadline, now + patience)
            if any(code not in (0, PREEMPTED) for code in ended.values()):
                final = any(code in (1, 2) for code in ended.values())
                deadline = min(deadline, now + (_LAST_WORDS_S if final else _FAREWELL_S))
            time.sleep(_POLL_S)
        return ended
    finally:
        # Whoever is still there had its time; a request to leave would be obeyed only at the next step.
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.wait()
            with suppress(BrokenPipeError):
                assert worker.stdin is not None
                worker.stdin.close()


def _start(config: RunConfig, rank: int, port: int) -> subprocess.Popen[bytes]:
    environment = {
        "OMP_NUM_THREADS": str(threads_each(config.workers)),
        # Of a connection that breaks because a rank is gone, torch would tell in stack traces of C++.
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(config.workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    worker = subprocess.Popen(
        [sys.executable, "-m", "launchers.worker"],
        stdin=subprocess.PIPE,
        env=environment,
        # Ctrl-C in a terminal reaches the launcher alone, which then asks the workers.
        start_new_session=True,
    )
    _write_line(worker, config.model_dump_json())
    return worker


def _tell(workers: list[subprocess.Popen[bytes]], reason: str) -> None:
    """Ask to leave: by the pipe, since a signal would end a worker that is not yet ready for it."""
    for worker in workers:
        _write_line(worker, reason)


def _write_line(worker: subprocess.Popen[bytes], line: str) -> None:
    """To a worker's standard input; how one that is gone went will be seen by its exit code."""
    assert worker.stdin is not None
    with suppress(BrokenPipeError):
        worker.stdin.write(line.encode() + b"\n")
        worker.stdin.flush()


def _ended(workers: list[subprocess.Popen[bytes]]) -> dict[int, int]:
    """Rank and exit code of those that have ended."""
    return {rank: code for rank, worker in enumerate(workers) if (code := worker.poll()) is not None}


def _in_words(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return "failed" if code == CRASHED else f"ended with exit code {code}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
