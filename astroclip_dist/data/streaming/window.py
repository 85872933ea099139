"""Windows of a lane: which are needed when, and their samples once they are loaded."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from astroclip_dist.data.ordering.mixture import SampleOrder
from astroclip_dist.data.ordering.order import Cursor, Order, Window
from astroclip_dist.data.reading.reader import LoadedPiece
from astroclip_dist.data.stored.dataset import Shard
from astroclip_dist.errors import DamagedError


class Need(NamedTuple):
    """A window of one lane and component, of which the samples in ``part`` are used, from a step on."""

    step: int
    lane: int
    component: int
    window: Window
    part: slice


def needs(order: SampleOrder, lanes: Sequence[int], cursor: Cursor) -> Iterator[Need]:
    """The windows of some lanes from a cursor on, endless, in the order in which they are needed."""
    starts = order.start(cursor)
    return heapq.merge(
        *(_lane_needs(order, component, lane, *start) for lane in lanes for component, start in enumerate(starts)),
        key=lambda need: (need.step, need.lane, need.component),
    )


def _lane_needs(order: SampleOrder, component: int, lane: int, epoch: int, position: int) -> Iterator[Need]:
    """Each window with the part of its samples that is used: not those before the position, not those that the epoch
    drops at the lane's end."""
    own = order.components[component]
    while True:
        for window in own.windows(epoch, lane):
            part = slice(max(position - window.start, 0), min(own.used_length - window.start, len(window)))
            if part.start < part.stop:
                yield Need(order.step_of(component, epoch, window.start + part.start), lane, component, window, part)
        epoch, position = epoch + 1, 0


def others_of_lane(order: Order, window: Window) -> list[Window]:
    """The other windows of a window's lane and epoch, beginning with the one after it."""
    windows = order.windows(window.epoch, window.lane)
    return windows[window.number + 1 :] + windows[: window.number]


@dataclass
class LoadedWindow:
    """A window whose pieces can be read, but for those that turned out damaged.

    Attributes:
        need: what it was loaded for.
        pieces: in the window's order; the error of a damaged one in its place.
        shards: of the pieces.
        release: gives back its room, once; called when its last sample was used.
    """

    need: Need
    pieces: Sequence[LoadedPiece | DamagedError]
    shards: Sequence[Shard]
    numbers: np.ndarray
    rows: np.ndarray
    release: Callable[[], None]
    _unused: int = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._unused = self.need.part.stop - self.need.part.start

    def at(self, place: int) -> tuple[LoadedPiece | DamagedError, Shard, int]:
        """The sample at a place of the window's shuffled order: its piece (or why there is none), shard and row."""
        number = int(self.numbers[place])
        return self.pieces[number], self.shards[number], int(self.rows[place])

    def used(self, count: int) -> None:
        """Told that so many of its samples are in their batch."""
        with self._lock:
            self._unused -= count
            last = self._unused == 0
        if last:
            self.release()
