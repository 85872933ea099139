"""The place of a sample that cannot be read is filled with another one, the same for every world size and restart.

It is the next readable sample of the window's shuffled order, round and round; if the window has none, of the windows
that follow in its lane. So that sample comes twice in its epoch, and nothing else changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from astroclip_dist.data.ordering.mixture import SampleOrder
from astroclip_dist.data.ordering.order import Window
from astroclip_dist.data.reading.quarantine import BadData, Quarantine
from astroclip_dist.data.reading.reader import Slot
from astroclip_dist.data.stored.dataset import Shard
from astroclip_dist.data.streaming.window import LoadedWindow, others_of_lane
from astroclip_dist.errors import DamagedError, DataError


class PlaceFiller:
    """Reads the samples of a rank's windows into their places.

    Args:
        order: of the run.
        load: loads any window of a component, outside of the memory budget: only where a whole window is unreadable.
        quarantine: where bad samples and shards go; None: the first one is an error.
        rank: for the quarantine's records.
    """

    def __init__(
        self, order: SampleOrder, load: Callable[[Window, int], LoadedWindow], quarantine: Quarantine | None, rank: int
    ) -> None:
        self._order, self._load, self._quarantine, self._rank = order, load, quarantine, rank
        self._lock = threading.Lock()
        self._elsewhere: LoadedWindow | None = None

    def fill(self, window: LoadedWindow, place: int, slots: Sequence[Slot]) -> str:
        """Read the sample at a place of a window, or the one that stands in for it.

        Returns:
            The key of the sample that was read.

        Raises:
            DamagedError: it is damaged, and there is no quarantine; or no sample of the lane can be read.
            DataError, StorageError
        """
        for loaded, at in self._candidates(window, place):
            piece, shard, row = loaded.at(at)
            if isinstance(piece, DamagedError):
                self._put_aside(shard, "", shard.entry.samples, loaded, piece)
                continue
            key = piece.index.keys[row]
            if self._quarantine and (shard.url, key) in self._quarantine:
                continue
            try:
                piece.read_arrays(row, slots)
            except DamagedError as error:
                self._put_aside(shard, key, 1, loaded, error)
                continue
            return key
        raise DataError(
            f"epoch {window.need.window.epoch}", "no sample of the lane can be read", "Restore the dataset's shards."
        )

    def _candidates(self, window: LoadedWindow, place: int) -> Iterator[tuple[LoadedWindow, int]]:
        for at in range(place, place + len(window.rows)):
            yield window, at % len(window.rows)
        need = window.need
        for other in others_of_lane(self._order.components[need.component], need.window):
            loaded = self._load_other(other, need.component)
            for at in range(len(loaded.rows)):
                yield loaded, at

    def _load_other(self, window: Window, component: int) -> LoadedWindow:
        # A window without any readable sample asks for the same one for each of its places.
        with self._lock:
            if self._elsewhere is None or self._elsewhere.need.window != window:
                self._elsewhere = self._load(window, component)
            return self._elsewhere

    def _put_aside(self, shard: Shard, key: str, samples: int, window: LoadedWindow, error: DamagedError) -> None:
        if self._quarantine is None:
            raise error
        why = f"rank {self._rank}, lane {window.need.lane}, {error}"
        self._quarantine.add(BadData(shard.url, key, samples, why))
