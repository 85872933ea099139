"""Whether a run fits, and if not what would: found by trying, each candidate by the same dry run as the run itself."""

from __future__ import annotations

import math
from collections.abc import Iterator

from astroclip_dist.config.engine import DeepSpeedEngine
from astroclip_dist.errors import ConfigError
from astroclip_dist.plan.memory import Need, need_of
from astroclip_dist.train.dry_run.forecast import Layouts

# Of the device: what a dry run does not see (allocator, NCCL, workspaces) has to fit into the rest.
COMFORTABLE = 0.9
_TRIES, _DOUBLINGS = 3, 6


def fits(need: Need, memory: float) -> bool:
    """Whether a GPU of so many bytes holds it at all."""
    return need.total <= memory


def fits_well(need: Need, memory: float) -> bool:
    """Whether it also leaves room for what is not counted."""
    return need.total <= COMFORTABLE * memory


class Search:
    """Changes with which a run that does not fit does.

    Args:
        needs: of the run, and of the same under the other engines.
        memory: bytes of a GPU.
    """

    def __init__(self, needs: list[Need], layouts: Layouts, memory: float) -> None:
        self._own, self._needs, self._layouts, self._memory = needs[0], needs, layouts, memory

    def proposals(self) -> list[Need]:
        """Those first that change least; more GPUs only where nothing else helps; none: nothing that was tried fits."""
        others = (need for need in self._needs[1:] if fits_well(need, self._memory))
        found = [*filter(None, [self._with_smaller_passes(self._own)]), *others]
        # Whatever holds the fewest states has most room for a sample.
        leanest = min(self._needs, key=lambda need: need.total - need.activations)
        bases = [self._own] if leanest is self._own else [self._own, leanest]
        if not found:
            found = [
                *filter(None, map(self._with_smaller_passes, bases[1:])),
                *filter(None, map(self._recomputed, bases)),
            ]
        if not found:
            sharded = min((need for need in self._needs if _is_sharded(need)), key=lambda need: need.total)
            found = [*filter(None, [self._with_more_gpus(sharded)])]
        return found

    def _with_smaller_passes(self, need: Need) -> Need | None:
        """With the largest ``batch.micro_size`` that fits; activations shrink with it, or a little less."""
        micro, tries = need.config.micro_batch, 0
        for size in _divisors(need.config.local_batch):
            estimate = need.total - need.activations * (1 - size / micro)
            if size >= micro or estimate > COMFORTABLE * self._memory:
                continue
            tried = self._try(need, f"batch.micro_size={size}")
            if tried is not None and fits_well(tried, self._memory):
                return tried
            tries += tried is not None
            if tries == _TRIES:
                break
        return None

    def _recomputed(self, need: Need) -> Need | None:
        """With activations computed again in backward, in smaller passes if that takes it."""
        if need.config.engine.recompute == "full":
            return None
        tried = self._try(need, "engine.recompute=full")
        if tried is None or fits_well(tried, self._memory):
            return tried
        return self._with_smaller_passes(tried)

    def _with_more_gpus(self, need: Need) -> Need | None:
        """Twice as many, again and again, each with one sample at once where it takes that."""
        batch = need.config.batch
        for doubling in range(1, _DOUBLINGS + 1):
            workers = need.config.workers * 2**doubling
            lanes = math.lcm(batch.lanes, workers)
            if batch.global_size % lanes:
                return None
            micro = math.gcd(need.config.micro_batch, batch.global_size // workers)
            # More lanes are another order of the samples.
            more_lanes = [f"batch.lanes={lanes}"] if lanes != batch.lanes else []
            tried = self._try(need, f"workers={workers}", f"batch.micro_size={micro}", *more_lanes)
            if tried is None:
                continue
            if fits_well(tried, self._memory):
                return tried
            if smaller := self._with_smaller_passes(tried):
                return smaller
        return None

    def _try(self, need: Need, *changes: str) -> Need | None:
        """None for what the training would refuse: micro-batches that would cut cohorts, for one."""
        by_key = {change.partition("=")[0]: change for change in (*need.overrides, *changes)}
        try:
            return need_of(self._own.config, tuple(by_key.values()), self._layouts)
        except ConfigError:
            return None


def _divisors(number: int) -> Iterator[int]:
    """The largest first."""
    return (size for size in range(number, 0, -1) if number % size == 0)


def _is_sharded(need: Need) -> bool:
    engine = need.config.engine
    return engine.name == "fsdp" or (isinstance(engine, DeepSpeedEngine) and engine.zero_stage == 3)
