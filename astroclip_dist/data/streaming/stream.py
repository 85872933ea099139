"""The batches of one rank, from a cursor on: windows fetched ahead by threads, batches filled ahead by threads.

    order ──windows of the rank's lanes──> budget ──> load (pool) ──> fill (pool) ──> queue of batches ──> training

Threads, not processes: fetching, checking and copying all happen outside Python's interpreter lock, there is nothing to
fork and nothing to send between processes.
"""

from __future__ import annotations

import atexit
import itertools
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from astroclip_dist.config.run import Reading
from astroclip_dist.data.draws import in_epochs
from astroclip_dist.data.ordering.mixture import SampleOrder
from astroclip_dist.data.ordering.order import Cursor, Window
from astroclip_dist.data.reading.quarantine import Quarantine
from astroclip_dist.data.reading.reader import LoadedPiece, load_piece
from astroclip_dist.data.reading.shard_bytes import Fetcher
from astroclip_dist.data.reading.shard_cache import ShardCache
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.stored.manifest import key_hash
from astroclip_dist.data.streaming.batch_memory import BatchMemory
from astroclip_dist.data.streaming.filling import BatchArrays
from astroclip_dist.data.streaming.refill import PlaceFiller
from astroclip_dist.data.streaming.room import check_cache, check_memory, window_bytes
from astroclip_dist.data.streaming.window import LoadedWindow, Need, needs
from astroclip_dist.data.streaming.window_budget import WindowBudget
from astroclip_dist.errors import DamagedError, DataError, StorageError, UserError

# Windows of a lane that are in use, ready, or being loaded, whatever their size.
_WINDOWS_A_LANE = 3
_LOADERS = 2
# How long closing waits for the threads; they end at once, but for what a stuck disk holds up.
_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Batch:
    """One rank's samples of one step, lane after lane.

    Attributes:
        cursor: the step they belong to.
        keys: n survey identifiers.
        sample_ids: (n,) uint64, the keys' 64-bit identities.
        epochs: (n,) int64, how often the samples' dataset was gone through before.
        members: tensors on the CPU (pinned when CUDA is there), (n, *shape), in the dataset's dtype.
    """

    cursor: Cursor
    keys: list[str]
    sample_ids: np.ndarray
    epochs: np.ndarray
    members: dict[str, Tensor]

    @property
    def draw_ids(self) -> np.ndarray:
        """(n,) uint64, what the random draws for a sample are keyed by, besides the run's seed: the sample and its
        epoch, so that they do not depend on the batch, the rank, or a restart."""
        return in_epochs(self.sample_ids, self.epochs)


class _LaneReader:
    """Hands out the samples of one lane and component in their order."""

    def __init__(self) -> None:
        self.windows: queue.SimpleQueue[Future[LoadedWindow]] = queue.SimpleQueue()
        self._current: LoadedWindow | None = None
        self._at = 0

    def take(self, count: int) -> Iterator[tuple[LoadedWindow, int, int]]:
        """The next samples as runs (window, first place, places)."""
        while count:
            window = self._current or self.windows.get().result()
            at = self._at if self._current else window.need.part.start
            run = min(count, window.need.part.stop - at)
            # A window that is used up is let go at once: the next one may wait for its memory.
            self._current, self._at = (window, at + run) if at + run < window.need.part.stop else (None, 0)
            yield window, at, run
            count -= run


class Stream:
    """The batches of one rank.

    Args:
        dataset: the training split.
        order: of the run.
        members: what the objective needs, of ``image``, ``spectrum``, ``ivar``.
        rank, world_size: which lanes are read; the world size divides the lanes.
        cursor: the first step.
        steps: how many will be asked for; nothing is fetched for later ones. None: endless.
        reading: threads, memory and cache; never changes the samples.
        quarantine: where damaged samples and shards are put aside, others filling their places; None: the first
            damaged one is an error.

    Raises:
        ConfigError: memory or cache that cannot hold one window of each lane.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: SampleOrder,
        members: Sequence[str],
        *,
        rank: int,
        world_size: int,
        cursor: Cursor,
        steps: int | None = None,
        reading: Reading = Reading(),  # noqa: B008 (it cannot change)
        quarantine: Quarantine | None = None,
    ) -> None:
        self.dataset, self.order, self.members, self.rank = dataset, order, tuple(members), rank
        lanes = order.lanes // world_size
        self._steps = steps
        self._lanes = range(rank * lanes, (rank + 1) * lanes)
        self._samples = lanes * order.samples_per_lane_step
        check_cache(dataset, order, lanes, reading)
        room = check_memory(dataset, order, self.members, lanes, reading)
        self._in_memory = reading.cache is None
        self._budget = WindowBudget(room, _WINDOWS_A_LANE * lanes * len(order.components))
        self._fetcher = Fetcher(reading.requests)
        cache = reading.cache
        self._cache = ShardCache(cache.folder, cache.limit, self._fetcher) if cache else None
        self._quarantine = quarantine
        self._filler = PlaceFiller(order, self._load, quarantine, rank)
        self._memory = BatchMemory()
        self._loaders = ThreadPoolExecutor(_LOADERS, "load")
        self._fillers, self._threads = ThreadPoolExecutor(reading.threads, "fill"), reading.threads
        self._readers = {
            (lane, component): _LaneReader() for lane in self._lanes for component in range(len(order.components))
        }
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(reading.batches_ahead)
        self._stopped = threading.Event()
        self._ahead = [
            threading.Thread(target=work, args=(cursor,), name=name, daemon=True)
            for name, work in (("load-ahead", self._load_ahead), ("fill-ahead", self._fill_ahead))
        ]
        for thread in self._ahead:
            thread.start()
        # A thread that is inside torch while the interpreter goes down would abort the process.
        atexit.register(self.close)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch, epoch after epoch.

        Raises:
            StopIteration: after the last of ``steps``.
            DataError, StorageError: with the URL, shard, sample, lane and rank.
        """
        item = self._queue.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    def close(self) -> None:
        """Stop all threads. A request in flight is waited for no longer than its own deadline, in the background."""
        self._stopped.set()
        self._budget.close()
        self._fetcher.close()
        for pool in (self._loaders, self._fillers):
            pool.shutdown(wait=False, cancel_futures=True)
        self._end_readers(DataError("stream", "closed", "Open another one."))
        for thread in self._ahead:
            thread.join(_PATIENCE_S)
        atexit.unregister(self.close)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end_readers(self, error: BaseException) -> None:
        for reader in self._readers.values():
            end: Future[LoadedWindow] = Future()
            end.set_exception(error)
            reader.windows.put(end)

    def _load_ahead(self, cursor: Cursor) -> None:
        """Load windows in the order in which they are needed, as far ahead as the budget allows."""
        first = cursor.epoch * self.order.steps_per_epoch + cursor.step
        try:
            for need in needs(self.order, self._lanes, cursor):
                if self._steps is not None and need.step >= first + self._steps:
                    return
                size = window_bytes(self.dataset.groups[need.component], need.window) if self._in_memory else 0
                if not self._budget.take(size):
                    return
                self._readers[need.lane, need.component].windows.put(self._loaders.submit(self._load_need, need, size))
        except BaseException as error:
            if not self._stopped.is_set():
                self._end_readers(error)

    def _load_need(self, need: Need, size: int) -> LoadedWindow:
        try:
            return self._load(need.window, need.component, need, size)
        except UserError as error:
            raise self._placed(error, need.lane) from error

    def _load(self, window: Window, component: int, need: Need | None = None, size: int | None = None) -> LoadedWindow:
        shards = [self.dataset.groups[component][piece.shard] for piece in window.pieces]
        pieces: list[LoadedPiece | DamagedError] = []
        for shard, piece in zip(shards, window.pieces, strict=True):
            try:
                if self._quarantine and (shard.url, "") in self._quarantine:
                    raise DamagedError(shard.url, "in quarantine", "Remove it from the run's quarantine file.")
                pieces.append(load_piece(shard, piece, self.members, self._fetcher, self._cache))
            except DamagedError as error:
                if self._quarantine is None:
                    raise
                pieces.append(error)
        numbers, rows = self.order.components[component].window_samples(window)
        need = need or Need(0, window.lane, component, window, slice(0, len(window)))
        release = (lambda: None) if size is None else lambda: self._budget.give_back(size)
        return LoadedWindow(need, pieces, shards, numbers, rows, release)

    def _fill_ahead(self, cursor: Cursor) -> None:
        try:
            for number in itertools.count():
                if self._stopped.is_set() or number == self._steps:
                    break
                self._offer(self._assemble(cursor))
                cursor = self.order.next(cursor)
            self._offer(StopIteration())
        except BaseException as error:  # handed to the training thread, which raises it
            self._offer(error)

    def _assemble(self, cursor: Cursor) -> Batch:
        arrays = BatchArrays(self.dataset, self.members, self._samples, self._memory)
        keys = [""] * self._samples
        epochs = np.empty(self._samples, np.int64)
        turns = self.order.turns(cursor)
        # Several tasks a thread, so that no thread waits long for the others at the end.
        step = max(1, self._samples // (4 * self._threads))
        tasks = []
        for number, lane in enumerate(self._lanes):
            for component in range(len(self.order.components)):
                places = number * len(turns) + np.flatnonzero(turns == component)
                taken = 0
                for window, first, count in self._readers[lane, component].take(len(places)):
                    epochs[places[taken : taken + count]] = window.need.window.epoch
                    for at in range(0, count, step):
                        into = places[taken + at : min(taken + at + step, taken + count)].tolist()
                        tasks.append(self._fillers.submit(self._fill, window, first + at, into, arrays, keys))
                    taken += count
        for task in tasks:
            task.result()
        ids = np.fromiter(map(key_hash, keys), dtype=np.uint64, count=len(keys))
        return Batch(cursor, keys, ids, epochs, arrays.tensors)

    def _fill(self, window: LoadedWindow, first: int, places: list[int], arrays: BatchArrays, keys: list[str]) -> None:
        try:
            for at, place in enumerate(places):
                keys[place] = self._filler.fill(window, first + at, arrays.slots(place))
        except UserError as error:
            raise self._placed(error, window.need.lane) from error
        window.used(len(places))

    def _placed(self, error: UserError, lane: int) -> UserError:
        kind = StorageError if isinstance(error, StorageError) else DataError
        return kind(f"rank {self.rank}, lane {lane}, {error.field}", error.value, error.mend)

    def _offer(self, item: Batch | BaseException) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue
            return
