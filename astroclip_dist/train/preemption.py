"""A process that is asked to leave: a queue preempts the job, a time limit nears, a node is drained."""

from __future__ import annotations

import signal
from types import FrameType

# NCCL takes SIGUSR1 for itself where it is told to; queues can be told to send any of them.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Notice:
    """Whether this process was asked to leave, and by what. Looked at once a step, it may come at any time."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def give(self, reason: str) -> None:
        """Ask; the first reason counts. Safe in a signal handler and in any thread."""
        self.reason = self.reason or reason

    def listen(self) -> None:
        """Take the signals that queues send as a notice. Only the main thread may call this."""
        for number in SIGNALS:
            signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.give(signal.Signals(number).name)
