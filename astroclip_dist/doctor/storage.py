"""Datasets that can be read, run folders that can be written, and how fast both are."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple
from uuid import uuid4

from astroclip_dist.data.stored.manifest import MANIFEST_NAME, Manifest, read_manifest
from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.findings import Finding, Values, fine, problem, warning
from astroclip_dist.errors import StorageError, UserError
from astroclip_dist.runs.wording import amount
from astroclip_dist.store import ChangedObjectError, Store

# Of one request; a server that is away costs as much.
_DEADLINE_S = 6.0
_LONGEST_S, _MOST_READ, _STREAMS = 3.0, 512 << 20, 8
_SMALLEST, _LARGEST, _LONG_S = 64 << 10, 8 << 20, 0.25
_LATENCY_PROBES = 5
_SLOW_BYTES_A_S, _SLOW_ANSWER_S = 10e6, 0.2


class Piece(NamedTuple):
    """A range of an object."""

    name: str
    start: int
    stop: int


def check_storage(context: Context) -> list[Finding]:
    """The run's datasets and folder, and the places named beside them."""
    found = [finding for url in context.datasets for finding in _bounded(url, _dataset)]
    if context.run:
        found += _bounded(context.run, _run_folder)
    for url in context.urls:
        found += _bounded(url, _either)
    return found


def _bounded(url: str, examine: Callable[[Store], list[Finding]]) -> list[Finding]:
    try:
        store = Store(url, _DEADLINE_S)
        store.check()
        return examine(store)
    except UserError as error:
        return [problem(f"{error.field}: {error.value}", error.mend, url=url)]


def _either(store: Store) -> list[Finding]:
    return _dataset(store) if store.exists(MANIFEST_NAME) else _run_folder(store)


def _dataset(store: Store) -> list[Finding]:
    manifest = read_manifest(store)
    answer_s = _answer_time(store, MANIFEST_NAME)
    bytes_read, seconds = measure_reading(store, _pieces(manifest))
    rate = bytes_read / seconds
    sample = sum(shard.bytes for shard in manifest.shards) / sum(shard.samples for shard in manifest.shards)
    about = (
        f"{store.url} can be read: {amount(rate)}/s ({rate / sample:,.0f} samples/s; {amount(bytes_read)} read),"
        f" answers in {1000 * answer_s:.0f} ms"
    )
    values: Values = {
        "url": store.url,
        "read_bytes_a_second": round(rate),
        "read_bytes": bytes_read,
        "samples_a_second": round(rate / sample, 1),
        "answer_s": round(answer_s, 4),
    }
    return [_judged(about, rate, seconds, answer_s, values)]


def _run_folder(store: Store) -> list[Finding]:
    if store.is_local:
        # The check of the disks writes there; a folder that is not there yet must not be left behind.
        return []
    name = f".doctor-{uuid4().hex}"
    try:
        written_s = _exercise(store, name)
        answer_s = _answer_time(store, name)
    finally:
        with suppress(StorageError):
            store.delete([name])
    size, seconds = (_SMALLEST, written_s[0]) if len(written_s) == 1 else (_LARGEST, written_s[1])
    rate = size / seconds
    about = (
        f"{store.url} can be written, read back, written under a condition and removed: {amount(rate)}/s,"
        f" answers in {1000 * answer_s:.0f} ms"
    )
    values: Values = {"url": store.url, "written_bytes_a_second": round(rate), "answer_s": round(answer_s, 4)}
    return [_judged(about, rate, seconds, answer_s, values)]


def _exercise(store: Store, name: str) -> list[float]:
    """What a run does with its folder.

    Returns:
        Seconds that a small write took, and, where that was quick, a large one.

    Raises:
        StorageError: it does not do what a run relies on.
    """
    content = os.urandom(_SMALLEST)
    began = time.monotonic()
    try:
        tag = store.put(name, content)
    except StorageError as error:
        raise StorageError(store.url, f"cannot be written: {error.value}", error.mend) from error
    seconds = [time.monotonic() - began]
    where = store.locate(name)
    if store.read(name) != content:
        raise StorageError(where, "reads back other bytes than were written", "Do not use this storage for runs.")
    conditions = "A run is held, and its checkpoints are published, by conditional writes: use storage that has them."
    with suppress(FileExistsError):
        store.put(name, b"another", create_only=True)
        raise StorageError(where, "was overwritten by a write that was to create it alone", conditions)
    store.replace(name, content[::-1], tag)
    with suppress(ChangedObjectError):
        store.replace(name, b"stale", tag)
        raise StorageError(where, "was overwritten by a write on the condition of an older tag", conditions)
    if seconds[0] < _LONG_S:
        large = os.urandom(_LARGEST)
        began = time.monotonic()
        store.put(name, large)
        seconds.append(time.monotonic() - began)
    return seconds


def _judged(about: str, rate: float, seconds: float, answer_s: float, values: Values) -> Finding:
    # What is over at once has measured how soon an answer comes, not how fast.
    if rate < _SLOW_BYTES_A_S and seconds > _LONG_S:
        mend = "Use storage in the same region and network, or a shard cache on a local disk (reading.cache)."
        return warning(f"slow: {about}", mend, **values)
    if answer_s > _SLOW_ANSWER_S:
        mend = "Use storage that is nearer, or raise reading.requests and reading.batches_ahead."
        return warning(f"far: {about}", mend, **values)
    return fine(about, **values)


def _answer_time(store: Store, name: str) -> float:
    """Median seconds of a request for one byte."""
    seconds = []
    for _ in range(_LATENCY_PROBES):
        began = time.monotonic()
        store.read_range(name, 0, 1)
        seconds.append(time.monotonic() - began)
        if sum(seconds) > _LONGEST_S:
            break
    return statistics.median(seconds)


def _pieces(manifest: Manifest) -> list[Piece]:
    """Ranges spread over the dataset: never the same bytes twice, which a cache would answer."""
    stride = max(1, len(manifest.shards) // 64)
    return [
        Piece(f"{shard.name}.tar", start, min(start + _LARGEST, shard.bytes))
        for shard in manifest.shards[::stride][:64]
        for start in range(0, shard.bytes, _LARGEST)
    ]


def measure_reading(store: Store, pieces: Sequence[Piece]) -> tuple[int, float]:
    """Read for at most some seconds, by several threads as a run does.

    Returns:
        Bytes read, and seconds.

    Raises:
        StorageError
    """
    # Alone first: by how much may be asked for at once without waiting for long afterwards.
    size = _SMALLEST
    while True:
        name, start, stop = pieces[0]
        began = time.monotonic()
        length = min(size, stop - start)
        store.read_range(name, start, start + length)
        seconds = time.monotonic() - began
        if seconds > _LONG_S or length == stop - start:
            break
        size *= 2
    if seconds > 1 or len(pieces) == 1:
        return length, seconds
    began, waiting, lock = time.monotonic(), iter(pieces[1:]), threading.Lock()
    done = [0]
    errors: list[UserError] = []

    def read() -> None:
        while time.monotonic() - began < _LONGEST_S and done[0] < _MOST_READ and not errors:
            with lock:
                piece = next(waiting, None)
            if piece is None:
                return
            try:
                got = len(store.read_range(piece.name, piece.start, min(piece.stop, piece.start + size)))
            except UserError as error:
                errors.append(error)
                return
            with lock:
                done[0] += got

    threads = [threading.Thread(target=read, daemon=True) for _ in range(_STREAMS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return done[0], time.monotonic() - began
