"""Something done again and again beside the training, which neither waits for it nor fails with it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Heartbeat:
    """Calls ``beat`` every so many seconds in a thread, and once more at the end.

    Args:
        name: of the thread, and in the log when a beat fails; the next one is tried all the same.
    """

    def __init__(self, name: str, beat: Callable[[], None], interval_s: float) -> None:
        self._name, self._beat, self._interval_s = name, beat, interval_s
        self._ending = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def close(self, deadline_s: float) -> None:
        """The last beat, for which nobody waits longer than this."""
        self._ending.set()
        self._thread.join(deadline_s)
        if self._thread.is_alive():
            log.warning("%s: the last one was not done within %.0f s", self._name, deadline_s)

    def _work(self) -> None:
        while not self._ending.wait(self._interval_s):
            self._try()
        self._try()

    def _try(self) -> None:
        try:
            self._beat()
            self._failed = False
        except Exception as error:  # nothing that is only told of the training may end it
            if not self._failed:
                log.warning("%s: %s", self._name, error)
            self._failed = True
