"""``events.jsonl``, the diary of a run: one JSON object a line, written by whoever has something to say, in turn.

Training never waits for it: a thread writes, and while the storage is away the events wait in memory. Nobody overwrites
what somebody else has written meanwhile: files are appended to under a lock of the operating system; an object is read
again and replaced only if it is still what was read. The order of events is that of the lines; their times are for
people, since clocks jump.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from astroclip_dist.errors import StorageError
from astroclip_dist.store import ChangedObjectError, MissingObjectError, Store

EVENTS_FILE = "events.jsonl"
CLOSE_DEADLINE_S = 30.0
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
log = logging.getLogger(__name__)


class EventLog:
    """Writes events of one process; several processes, or several logs of one, may do so at the same time.

    Args:
        store: the run folder. Nothing is read or written before the first event.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[bytes] = []
        self._news = threading.Condition()
        self._deadline: float | None = None
        self._thread: threading.Thread | None = None

    def write(self, event: str, **details: Any) -> None:
        """Add one event with the time (UTC) and its details, as JSON values; returns at once."""
        when = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"time": when, "event": event, **details}).encode() + b"\n"
        with self._news:
            self._waiting.append(line)
            self._news.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="event-log", daemon=True)
                self._thread.start()

    def close(self, deadline_s: float = CLOSE_DEADLINE_S) -> int:
        """Write what waits, for so long at most; what could not be written is logged.

        Returns:
            How many events that were.
        """
        with self._news:
            self._deadline = time.monotonic() + deadline_s
            self._news.notify()
        if self._thread is not None:
            self._thread.join(deadline_s)
        with self._news:
            lost = list(self._waiting)
        for line in lost:
            log.error("%s: could not be written: %s", self._store.locate(EVENTS_FILE), line.decode().rstrip())
        return len(lost)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        pause = 0.0
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._deadline is not None)
                lines = list(self._waiting)
            if not lines:
                return
            try:
                append(self._store, EVENTS_FILE, b"".join(lines))
            except Exception as error:  # the thread must live: events that cannot be written now may be later
                if not pause:
                    log.error("events wait in memory: %s", error)
                pause = min(max(SHORTEST_PAUSE_S, 2 * pause), LONGEST_PAUSE_S)
                if not self._pause(pause):
                    return
                continue
            pause = 0.0
            with self._news:
                del self._waiting[: len(lines)]

    def _pause(self, pause_s: float) -> bool:
        """Wait before the next try; while closing, for a short time only. False when there is none."""
        with self._news:
            self._news.wait_for(lambda: self._deadline is not None, pause_s)
        if self._deadline is not None:
            time.sleep(SHORTEST_PAUSE_S)
        return self._deadline is None or time.monotonic() < self._deadline


def append(store: Store, name: str, lines: bytes) -> None:
    """Add whole lines at the end of an object; whatever others add at the same time is kept, and so are these.

    On object storage, lines that are there already were written by a try whose answer was lost, in this call or in one
    that failed.

    Raises:
        StorageError: nothing was added, as far as one knows.
    """
    path = store.local_path(name)
    if path is not None:
        _append_to_file(path, lines)
        return
    while True:
        try:
            text, tag = store.read_tagged(name)
        except MissingObjectError:
            try:
                store.put(name, lines, create_only=True)
            except FileExistsError:
                continue
            return
        missing = b"".join(line for line in lines.splitlines(keepends=True) if line not in text)
        if not missing:
            return
        try:
            store.replace(name, text + missing, tag)
        except ChangedObjectError:
            continue
        return


def _append_to_file(path: Path, lines: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file).st_size
            # A machine that went down within a write leaves half a line.
            torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
            lines = b"\n" + lines if torn else lines
            try:
                if os.write(file, lines) < len(lines):
                    raise OSError("No space left on device")
            except OSError:
                os.ftruncate(file, size)
                raise
        finally:
            os.close(file)
    except OSError as error:
        raise StorageError(
            path.as_uri(), error.strerror or error, "Free space, or check that it can be written."
        ) from error


def read_events(store: Store) -> list[dict[str, Any]]:
    """All events of a run, oldest first; half a line, which only a crash of the machine can leave, is left out.

    Raises:
        MissingObjectError: the run has none yet.
    """
    events = []
    for line in store.read(EVENTS_FILE).splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            log.warning("%s: not an event, left out: %r", store.locate(EVENTS_FILE), line[:100])
    return events
