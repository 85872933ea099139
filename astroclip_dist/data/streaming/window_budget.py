"""How much of the training data a rank holds at once: a hard limit in bytes, and one in windows."""

from __future__ import annotations

import threading


class WindowBudget:
    """Room for windows, taken before they are fetched and given back when their last sample was used.

    Whoever takes room in the order in which the windows are needed never waits for ever, as long as the limits let
    each lane hold one window: the window that is needed next is the next to get room.

    Args:
        limit_bytes: of all windows together.
        limit_windows: how many, whatever their size.
    """

    def __init__(self, limit_bytes: int, limit_windows: int) -> None:
        self._changed = threading.Condition()
        self._bytes, self._windows = limit_bytes, limit_windows
        self._closed = False

    def take(self, size: int) -> bool:
        """Wait for room for a window of ``size`` bytes; False when the budget was closed meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._windows > 0 and self._bytes >= size))
            self._bytes -= size
            self._windows -= 1
            return not self._closed

    def give_back(self, size: int) -> None:
        with self._changed:
            self._bytes += size
            self._windows += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let all who wait go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
