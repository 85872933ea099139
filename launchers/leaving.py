"""What the launcher's process is asked to do by signals while its workers train."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from astroclip_dist.train.preemption import SIGNALS, Notice

# What a shell reports of a command that Ctrl-C ended: whoever queues a run again at 75 must not undo what a person did.
INTERRUPTED = 130


class LeaveSignals:
    """Takes, while within, the signals of queues and the first Ctrl-C as a notice to save and leave.

    Only the main thread may use it.

    Attributes:
        notice: the first signal.
        at_once: Ctrl-C was pressed after that: nothing is to be waited for.
    """

    def __init__(self) -> None:
        self.notice = Notice()
        self.at_once = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._received) for number in (signal.SIGINT, *SIGNALS)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def interrupted(self) -> bool:
        """Whether a person at the keyboard has asked."""
        return self.at_once or self.notice.reason == signal.SIGINT.name

    def _received(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.notice.reason is not None:
            self.at_once = True
        self.notice.give(signal.Signals(number).name)
