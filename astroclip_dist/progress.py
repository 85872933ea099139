"""Progress of a long command: a bar on a terminal, a plain line now and then elsewhere; always with rate and ETA."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable
from typing import TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")
LINE_EVERY_S = 10.0


def with_progress(
    items: Iterable[T], total: int, unit: str, stream: TextIO | None = None, line_every_s: float = LINE_EVERY_S
) -> Generator[T]:
    """Pass items through and report on ``stream`` (standard error) how many went by.

    Args:
        total: how many will come.
        unit: what they are, in the plural.
        line_every_s: seconds between two lines where the stream is no terminal.
    """
    stream = stream or sys.stderr
    if stream.isatty():
        yield from tqdm(items, total=total, unit=f" {unit}", file=stream, dynamic_ncols=True)
        return
    begin = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= line_every_s:
            last = now
            rate = done / (now - begin)
            left = max(0.0, (total - done) / rate)
            print(f"{done:,} of {total:,} {unit}, {rate:,.1f}/s, {_duration(left)} left", file=stream, flush=True)
    spent = time.monotonic() - begin
    print(f"{done:,} {unit} in {_duration(spent)}, {done / max(spent, 1e-9):,.1f}/s", file=stream, flush=True)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
