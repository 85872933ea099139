"""Several datasets in fixed proportions: which dataset each place of a batch is filled from.

Each dataset has an order of its own, with epochs of its own: a small one comes round more often than a large one, and
each of its samples once in each of its rounds. The places of a lane follow a pattern that repeats: with weights 3 and 1
it is ``0 0 1 0``. So every batch holds the datasets in their proportions to within a sample a lane, and where each
dataset stands at any step is arithmetic: nothing has to be counted from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm
from typing import Any

import numpy as np

from astroclip_dist.data.ordering.order import Cursor, Order
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.errors import ConfigError

# Weights such as 3 and 1, or 0.7 and 0.3, are exact; others are rounded to a pattern of this length.
_LONGEST_PATTERN = 1000


class Mixture:
    """The sample order over several datasets.

    An epoch is as many steps as would fit the samples of all datasets together; with weights that are not their sizes'
    proportions some samples come more than once in it and others not at all.

    Args:
        shard_samples: for each dataset, (shards,) samples of each shard.
        weights: of each dataset, relative to the others: samples of it in a batch.
        seed, lanes, global_batch, window_shards: as of :class:`Order`.

    Raises:
        ConfigError: a weight that is not positive, or a dataset with fewer samples than lanes.
    """

    def __init__(
        self,
        shard_samples: Sequence[np.ndarray],
        weights: Sequence[float],
        *,
        seed: int,
        lanes: int,
        global_batch: int,
        window_shards: int,
    ) -> None:
        if global_batch % lanes:
            raise ConfigError("batch.global_size", global_batch, f"It must be a multiple of the {lanes} lanes.")
        # A component's own steps are of one sample a lane, so that it drops fewer samples than there are lanes.
        self.components: tuple[Order, ...] = tuple(
            Order(
                samples,
                seed=seed,
                lanes=lanes,
                global_batch=lanes,
                window_shards=window_shards,
                name=f"dataset {number}",
            )
            for number, samples in enumerate(shard_samples)
        )
        self.seed, self.lanes, self.global_batch = seed, lanes, global_batch
        self.samples_per_lane_step = global_batch // lanes
        self._pattern = _pattern(weights)
        self._places = [np.flatnonzero(self._pattern == number) for number in range(len(self.components))]
        taken = self._pattern[:, None] == np.arange(len(self.components))
        self._taken_before = np.concatenate([np.zeros((1, len(self.components)), np.int64), np.cumsum(taken, axis=0)])
        total = sum(int(samples.sum()) for samples in shard_samples)
        self.steps_per_epoch = max(1, total // global_batch)

    def turns(self, cursor: Cursor) -> np.ndarray:
        """(B / L,) int64: the component that each place of a lane's part of the batch is filled from."""
        first = self._place(cursor)
        return self._pattern[np.arange(first, first + self.samples_per_lane_step) % len(self._pattern)]

    def start(self, cursor: Cursor) -> list[tuple[int, int]]:
        """For each component, its own epoch and the position in its lanes at a cursor."""
        rounds, rest = divmod(self._place(cursor), len(self._pattern))
        taken = rounds * self._taken_before[-1] + self._taken_before[rest]
        return [divmod(int(n), order.used_length) for n, order in zip(taken, self.components, strict=True)]

    def step_of(self, component: int, epoch: int, position: int) -> int:
        """The step (counted from the run's start) that takes a position of a component's lanes."""
        rounds, rest = divmod(epoch * self.components[component].used_length + position, len(self._places[component]))
        place = rounds * len(self._pattern) + int(self._places[component][rest])
        return place // self.samples_per_lane_step

    def next(self, cursor: Cursor) -> Cursor:
        """The cursor after one step."""
        if cursor.step + 1 < self.steps_per_epoch:
            return Cursor(cursor.epoch, cursor.step + 1)
        return Cursor(cursor.epoch + 1, 0)

    def _place(self, cursor: Cursor) -> int:
        return (cursor.epoch * self.steps_per_epoch + cursor.step) * self.samples_per_lane_step


def _pattern(weights: Sequence[float]) -> np.ndarray:
    """The shortest sequence of component numbers in the weights' proportions, each spread evenly over it."""
    if min(weights) <= 0:
        raise ConfigError("data: weight", min(weights), "Each is above 0; leave a dataset out instead of giving it 0.")
    fractions = [Fraction(weight).limit_denominator(_LONGEST_PATTERN) for weight in weights]
    scale = lcm(*(fraction.denominator for fraction in fractions))
    counts = [int(fraction * scale) for fraction in fractions]
    if sum(counts) > _LONGEST_PATTERN or min(counts) == 0:
        counts = [round(_LONGEST_PATTERN * weight / sum(weights)) for weight in weights]
    if min(counts) == 0:
        raise ConfigError(
            "data: weight", min(weights), f"Below 1/{_LONGEST_PATTERN} of the weights' sum: leave the dataset out."
        )
    counts = [count // gcd(*counts) for count in counts]
    # The k-th of n samples of a component belongs at (k + 1/2) / n of the pattern; ties go to the first component.
    places = sorted((Fraction(2 * k + 1, 2 * n), number) for number, n in enumerate(counts) for k in range(n))
    return np.array([number for _, number in places], dtype=np.int64)


SampleOrder = Order | Mixture


def order_of(dataset: Dataset, *, seed: int, lanes: int, global_batch: int, window_shards: int) -> SampleOrder:
    """The order of a dataset: over all its shards, or, with weights, a mixture of the datasets it was opened from."""
    shape: dict[str, Any] = {"seed": seed, "lanes": lanes, "global_batch": global_batch, "window_shards": window_shards}
    if dataset.weights is None:
        return Order(dataset.shard_samples, **shape)
    return Mixture(
        [np.array([shard.entry.samples for shard in group], np.int64) for group in dataset.groups],
        dataset.weights,
        **shape,
    )
