"""The batches of one rank, from a cursor on: windows fetched ahead by threads, batches filled ahead by threads.

    order ──windows of the rank's lanes──> fetch (pool) ──pieces──> fill (pool) ──> queue of batches ──> training

Threads, not processes: fetching, checking and copying all happen outside Python's interpreter lock, there is nothing to
fork and nothing to send between processes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from astroclip_dist.data.batch_memory import BatchMemory
from astroclip_dist.data.dataset import Dataset
from astroclip_dist.data.manifest import key_hash
from astroclip_dist.data.order import Cursor, Order, Window
from astroclip_dist.data.reader import LoadedPiece, Slot, load_piece
from astroclip_dist.errors import DataError, StorageError


@dataclass(frozen=True)
class Batch:
    """One rank's samples of one step, lane after lane.

    Attributes:
        cursor: the step they belong to.
        keys: n survey identifiers.
        sample_ids: (n,) uint64, the keys' 64-bit identities.
        members: tensors on the CPU (pinned when CUDA is there), (n, *shape), in the dataset's dtype.
    """

    cursor: Cursor
    keys: list[str]
    sample_ids: np.ndarray
    members: dict[str, Tensor]


class Row(NamedTuple):
    """A sample of a loaded piece."""

    piece: LoadedPiece
    row: int


def fill(
    rows: Sequence[Row],
    dataset: Dataset,
    members: Sequence[str],
    pool: ThreadPoolExecutor,
    memory: BatchMemory | None = None,
) -> dict[str, Tensor]:
    """Read some samples' array members into tensors, (len(rows), *shape) each, of new memory unless some is given."""
    memory = memory or BatchMemory()
    tensors: dict[str, Tensor] = {}
    layouts = []
    for member in members:
        layout = dataset.layout(member)
        dtype, shape = np.dtype(layout.dtype), tuple(layout.shape)
        tensors[member] = memory.tensor((len(rows), *shape), getattr(torch, layout.dtype))
        flat = memoryview(tensors[member].numpy().reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        layouts.append((member, flat, len(flat) // len(rows), dtype, shape))

    def read(first: int, last: int) -> None:
        for at in range(first, last):
            slots = [
                Slot(member, flat[at * size : (at + 1) * size], dtype, shape)
                for member, flat, size, dtype, shape in layouts
            ]
            rows[at].piece.read_arrays(rows[at].row, slots)

    # Several tasks a thread, so that no thread waits long for the others at the end.
    step = max(1, len(rows) // (4 * pool._max_workers))
    tasks = [pool.submit(read, at, min(at + step, len(rows))) for at in range(0, len(rows), step)]
    for task in tasks:
        task.result()
    return tensors


class _Lane:
    """One lane from a cursor on: hands out samples, and has the next window fetched while the current one is used."""

    def __init__(self, stream: Stream, lane: int, cursor: Cursor) -> None:
        self._stream, self._lane = stream, lane
        self._windows = self._windows_from(cursor)
        self._ahead = stream.fetch(*next(self._windows))
        self._rows: list[Row] = []
        self._at = 0

    def _windows_from(self, cursor: Cursor) -> Iterator[tuple[Window, slice]]:
        """Windows still to read, epoch after epoch, each with the part of its samples that is used: not those before
        the cursor, not those that the epoch drops at the lane's end."""
        order = self._stream.order
        used = order.steps_per_epoch * order.samples_per_lane_step
        epoch, position = cursor.epoch, cursor.step * order.samples_per_lane_step
        while True:
            for window in order.windows(epoch, self._lane):
                part = slice(max(position - window.start, 0), min(used - window.start, len(window)))
                if part.start < part.stop:
                    yield window, part
            epoch, position = epoch + 1, 0

    def take(self, count: int) -> list[Row]:
        taken: list[Row] = []
        while len(taken) < count:
            if self._at == len(self._rows):
                self._rows, self._at = self._ahead.result(), 0
                self._ahead = self._stream.fetch(*next(self._windows))
            part = self._rows[self._at : self._at + count - len(taken)]
            taken += part
            self._at += len(part)
        return taken


class Stream:
    """The batches of one rank.

    Args:
        dataset: the training split.
        order: of the run.
        members: what the objective needs, of ``image``, ``spectrum``, ``ivar``.
        rank, world_size: which lanes are read; the world size divides the lanes.
        cursor: the first step.
        threads: of each pool.
        batches_ahead: batches filled before they are asked for.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        members: Sequence[str],
        *,
        rank: int,
        world_size: int,
        cursor: Cursor,
        threads: int = 2,
        batches_ahead: int = 2,
    ) -> None:
        self.dataset, self.order, self.members = dataset, order, tuple(members)
        self.rank = rank
        lanes = order.lanes // world_size
        self._fetchers = ThreadPoolExecutor(threads, "fetch")
        self._fillers = ThreadPoolExecutor(threads, "fill")
        self._memory = BatchMemory()
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(batches_ahead)
        self._stopped = threading.Event()
        for member in self.members:
            dataset.layout(member)
        self._lanes = range(rank * lanes, (rank + 1) * lanes)
        self._thread = threading.Thread(target=self._run, args=(cursor,), name="stream", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch; endless, epoch after epoch.

        Raises:
            DataError, StorageError: with the shard, sample, lane and rank.
        """
        item = self._queue.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    def close(self) -> None:
        """Stop all threads. A fetch in flight is waited for no longer than its own deadline, in the background."""
        self._stopped.set()
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        self._fillers.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fetch(self, window: Window, part: slice) -> Future[list[Row]]:
        """Have a window's pieces loaded; gives a part of its samples in training order."""
        return self._fetchers.submit(self._load, window, part)

    def _load(self, window: Window, part: slice) -> list[Row]:
        try:
            pieces = [load_piece(self.dataset.shards[p.shard], p, self.members) for p in window.pieces]
        except (DataError, StorageError) as error:
            raise type(error)(
                f"rank {self.rank}, lane {window.lane}, {error.field}", error.value, error.mend
            ) from error
        numbers, rows = self.order.window_samples(window)
        return [
            Row(pieces[number], row) for number, row in zip(numbers[part].tolist(), rows[part].tolist(), strict=True)
        ]

    def _run(self, cursor: Cursor) -> None:
        try:
            lanes = [_Lane(self, lane, cursor) for lane in self._lanes]
            while not self._stopped.is_set():
                self._offer(self._assemble(lanes, cursor))
                cursor = self.order.next(cursor)
        except BaseException as error:  # handed to the training thread, which raises it
            self._offer(error)

    def _assemble(self, lanes: list[_Lane], cursor: Cursor) -> Batch:
        rows: list[Row] = []
        for lane in lanes:
            rows += lane.take(self.order.samples_per_lane_step)
        keys = [row.piece.index.keys[row.row] for row in rows]
        try:
            members = fill(rows, self.dataset, self.members, self._fillers, self._memory)
        except DataError as error:
            raise DataError(f"rank {self.rank}, {error.field}", error.value, error.mend) from error
        ids = np.fromiter(map(key_hash, keys), dtype=np.uint64, count=len(keys))
        return Batch(cursor, keys, ids, members)

    def _offer(self, item: Batch | BaseException) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue
            return
