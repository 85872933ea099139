"""Lines of a file that grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from astroclip_dist.errors import StorageError

_POLL_S = 0.3


def lines_of(find: Callable[[], Path | None], is_over: Callable[[], bool] | None, ask_every_s: float) -> Iterator[str]:
    """All lines, and, where asked for, those that are still to come.

    Args:
        find: the file, None while there is none.
        is_over: whether nothing more will come; None: do not wait for more.
        ask_every_s: how often to ask that.
    """
    read, over, rest = 0, is_over is None, b""
    ask_at = time.monotonic()
    while True:
        last_look = over
        if (path := find()) is not None:
            with path.open("rb") as file:
                file.seek(read)
                news = file.read()
            read += len(news)
            *whole, rest = (rest + news).split(b"\n")
            for line in whole:
                yield line.decode(errors="replace")
        if last_look:
            break
        if time.monotonic() >= ask_at and is_over is not None:
            # Slurm away for a while: the file grows on, and whether the job is over will be told later.
            with suppress(StorageError):
                over = is_over()
            ask_at = time.monotonic() + ask_every_s
        if not over:
            time.sleep(_POLL_S)
    if rest:
        yield rest.decode(errors="replace")
