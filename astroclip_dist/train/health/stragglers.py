"""Ranks that are slower than the others by themselves: in a step that all end together, they cost all of them time."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from astroclip_dist.parallel import phase
from astroclip_dist.parallel.process_group import Ranks

# A rank is worth a line when it spends this many times what the median rank does, which costs this share of the time,
# in this many intervals in a row.
RATIO, SHARE, INTERVALS = 2.0, 0.1, 3
_KINDS = ("data", "prepare", "forward")
log = logging.getLogger(__name__)


class Stragglers:
    """Compares what ranks spend on their own, not waiting for others, once an interval of steps."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._slow_intervals = 0
        self._began = time.monotonic()
        phase.take_own_seconds()

    def figures(self) -> dict[str, float]:
        """Of the interval since the last call; called by all ranks together, one small all-gather.

        Returns:
            To log: which rank was slowest on its own, and its seconds over those of the median rank. Nothing for a rank
            that is alone.
        """
        seconds = phase.take_own_seconds()
        took, self._began = time.monotonic() - self._began, time.monotonic()
        if self._ranks.world_size == 1:
            return {}
        parts = [seconds.pop(kind, 0.0) for kind in _KINDS]
        mine = torch.tensor([*parts, sum(seconds.values())], device=self._ranks.device)
        everyone = mine.new_empty(self._ranks.world_size * len(mine))
        dist.all_gather_single(everyone, mine)
        return self._compare(everyone.view(self._ranks.world_size, -1).tolist(), took)

    def _compare(self, seconds: Sequence[Sequence[float]], took: float) -> dict[str, float]:
        """
        Args:
            seconds: of each rank, of each kind.
            took: the interval, in seconds.
        """
        totals = [sum(kinds) for kinds in seconds]
        median, longest = statistics.median_low(totals), max(totals)
        slowest = totals.index(longest)
        ratio = longest / median if median else 1.0
        slow = ratio > RATIO and longest - median > SHARE * took
        self._slow_intervals = self._slow_intervals + 1 if slow else 0
        if self._slow_intervals == INTERVALS and self._ranks.is_first:
            most = max(range(len(seconds[slowest])), key=lambda kind: seconds[slowest][kind])
            log.warning(
                "rank %d holds the others up: it spends %.1f times as long on its own as the median rank, %.0f %% of "
                "the time, most of it in %s",
                slowest,
                ratio,
                100 * longest / took,
                [*_KINDS, "saving and logging"][most],
            )
        return {"slowest_rank": float(slowest), "slowest_over_median": ratio}
