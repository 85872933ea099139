"""Which sample is in which batch: a pure function of (seed, epoch, step) that knows no ranks, files or time.

For each epoch the shards are permuted and laid end to end; the line is cut into L lanes of equal length; a lane's
samples are permuted inside windows of a few whole shards. A step takes B/L consecutive samples from each lane. What is
left at the ends (fewer than B samples, others in the next epoch) is dropped for the epoch. See docs/sample-order.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from astroclip_dist.data.draws import permutation, stream_key
from astroclip_dist.errors import ConfigError


@dataclass(frozen=True, order=True)
class Cursor:
    """The whole data state of a run: the step to do next. (The seed is part of the run's configuration.)"""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Samples [start, stop) of one shard. Only at a lane's ends is a piece less than its shard."""

    shard: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive pieces of a lane, fetched together, whose samples are shuffled together."""

    epoch: int
    lane: int
    number: int
    start: int  # position in the lane of the window's first sample
    pieces: tuple[Piece, ...]

    def __len__(self) -> int:
        return sum(map(len, self.pieces))


class Order:
    """The sample order of a training split.

    Args:
        shard_samples: (shards,) samples of each shard, in the order of the dataset's manifest.
        seed: of the run.
        lanes: L, fixed for the life of a run; every world size W with W | L can own whole lanes.
        global_batch: B, samples of a step over all ranks; a multiple of L.
        window_shards: pieces in a window.
        name: of the dataset, where it is one of several (:mod:`mixture`): its shards are permuted by themselves.

    Raises:
        ConfigError: an epoch would have no step.
    """

    def __init__(
        self,
        shard_samples: np.ndarray,
        *,
        seed: int,
        lanes: int,
        global_batch: int,
        window_shards: int,
        name: str = "",
    ) -> None:
        if global_batch % lanes:
            raise ConfigError("batch.global_size", global_batch, f"It must be a multiple of the {lanes} lanes.")
        self.shard_samples = np.asarray(shard_samples, dtype=np.int64)
        self.seed, self.lanes, self.window_shards = seed, lanes, window_shards
        self._name = name
        self.global_batch = global_batch
        self.samples_per_lane_step = global_batch // lanes
        self.lane_length = int(self.shard_samples.sum()) // lanes
        self.steps_per_epoch = self.lane_length // self.samples_per_lane_step
        if self.steps_per_epoch == 0:
            raise ConfigError(
                "batch.global_size",
                global_batch,
                f"The split has {int(self.shard_samples.sum())} samples: an epoch would have no step. "
                "Take a smaller batch, or fewer lanes.",
            )
        self.used_length = self.steps_per_epoch * self.samples_per_lane_step
        self._epoch = lru_cache(maxsize=2)(self._lay_out)

    def _lay_out(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's permutation of shards, and where each begins on the line (with the line's end)."""
        shards = permutation(stream_key(f"{self._name}shards", self.seed, epoch), len(self.shard_samples))
        return shards, np.concatenate(([0], np.cumsum(self.shard_samples[shards])))

    def windows(self, epoch: int, lane: int) -> list[Window]:
        """The windows of a lane, in the order in which they are read."""
        shards, begins = self._epoch(epoch)
        first, last = lane * self.lane_length, (lane + 1) * self.lane_length
        low = int(np.searchsorted(begins, first, side="right")) - 1
        high = int(np.searchsorted(begins, last, side="left"))
        pieces = []
        for place in range(low, high):
            start = max(first - int(begins[place]), 0)
            stop = min(last, int(begins[place + 1])) - int(begins[place])
            if stop > start:
                pieces.append(Piece(int(shards[place]), start, stop))
        windows, position = [], 0
        for number, at in enumerate(range(0, len(pieces), self.window_shards)):
            window = Window(epoch, lane, number, position, tuple(pieces[at : at + self.window_shards]))
            windows.append(window)
            position += len(window)
        return windows

    def window_samples(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """A window's samples in the order in which they are trained on.

        Returns:
            (n,) number of the piece within the window, (n,) row in that piece's shard; int64.
        """
        piece = np.repeat(np.arange(len(window.pieces)), [len(p) for p in window.pieces])
        row = np.concatenate([np.arange(p.start, p.stop) for p in window.pieces])
        key = stream_key(f"{self._name}window", self.seed, window.epoch, window.lane, window.number)
        shuffled = permutation(key, len(window))
        return piece[shuffled], row[shuffled]

    def step_samples(self, epoch: int, step: int) -> np.ndarray:
        """The global batch at a cursor: (lanes, B / L, 2) int64 pairs (shard, row). For checks; readers use windows."""
        first = step * self.samples_per_lane_step
        batch = np.empty((self.lanes, self.samples_per_lane_step, 2), dtype=np.int64)
        for lane in range(self.lanes):
            for window in self.windows(epoch, lane):
                low = max(first, window.start)
                high = min(first + self.samples_per_lane_step, window.start + len(window))
                if low < high:
                    piece, row = self.window_samples(window)
                    shard = np.array([p.shard for p in window.pieces])[piece]
                    inside = slice(low - window.start, high - window.start)
                    batch[lane, low - first : high - first] = np.stack([shard[inside], row[inside]], axis=-1)
        return batch

    @property
    def components(self) -> tuple[Order, ...]:
        """The orders that a batch is filled from: this one alone. (A :class:`Mixture` has several.)"""
        return (self,)

    def turns(self, cursor: Cursor) -> np.ndarray:
        """(B / L,) int64: the component that each place of a lane's part of the batch is filled from."""
        return np.zeros(self.samples_per_lane_step, dtype=np.int64)

    def start(self, cursor: Cursor) -> list[tuple[int, int]]:
        """For each component, its own epoch and the position in its lanes at a cursor."""
        return [(cursor.epoch, cursor.step * self.samples_per_lane_step)]

    def step_of(self, component: int, epoch: int, position: int) -> int:
        """The step (counted from the run's start) that takes a position of the lanes."""
        return epoch * self.steps_per_epoch + position // self.samples_per_lane_step

    def next(self, cursor: Cursor) -> Cursor:
        """The cursor after one step."""
        if cursor.step + 1 < self.steps_per_epoch:
            return Cursor(cursor.epoch, cursor.step + 1)
        return Cursor(cursor.epoch + 1, 0)
