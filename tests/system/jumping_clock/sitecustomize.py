"""A wall clock that jumps by hours, forward and back, every second, for all processes with this folder in PYTHONPATH.

Python imports this file by itself. All processes of the machine jump together: the jumps follow the monotonic clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

JUMPS_S = (0, 3 * 3600, -2 * 3600)
_time, _time_ns = time.time, time.time_ns


def _ahead_s() -> int:
    return JUMPS_S[int(time.monotonic()) % len(JUMPS_S)]


def _of_now(split: Callable[[float], time.struct_time], seconds: float | None = None) -> time.struct_time:
    return split(time.time() if seconds is None else seconds)


def _strftime(pattern: str, *when: Any) -> str:
    return _format(pattern, *(when or (time.localtime(),)))


_format = time.strftime
time.time = lambda: _time() + _ahead_s()
time.time_ns = lambda: _time_ns() + _ahead_s() * 1_000_000_000
# No plain functions: as a class attribute (``logging.Formatter.converter``) they would become methods.
time.gmtime, time.localtime = partial(_of_now, time.gmtime), partial(_of_now, time.localtime)
time.strftime = _strftime
