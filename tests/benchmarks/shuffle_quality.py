"""Spread of batch means of a property by which the survey is sorted, over that after a full permutation.

From ``Order`` alone, no files: the batches of an epoch, for several sizes of shards, lanes and windows, and those of
webdataset's shuffle buffer in 8 readers. The ratio is that of the settings that docs/shuffling.md advises for a sorted
survey: as many shards in flight, lanes x window_shards, as a batch has samples. All figures are means over epochs.

Columns: shards that a batch is drawn from; samples held for that; pairs of a batch that come from one shard, over those
after a full permutation; correlation of the sorted property from one sample of a lane to the next; spread (standard
deviation) of batch means, over that after a full permutation, of the sorted property and of one like those of
neighbours in the sky, of whose variance 5 % is shared by patches of 500 galaxies; correlation of the sorted property's
mean from one batch to the next.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from astroclip_dist.data.draws import permutation
from astroclip_dist.data.ordering.order import Order
from tests.benchmarks.result import Result, Size, print_result, size_asked_for

BATCH = 1024
LANES, WINDOWS = (8, 64), (1, 2, 4, 8)
ADVISED = (100, 64, 16)  # samples of a shard, lanes, shards of a window
READERS, BUFFERS = 8, (1_000, 10_000)  # of webdataset, and samples in the buffer of each
PATCH, SHARED_VARIANCE = 500, 0.05
# samples, samples of a shard, epochs, epochs of what is advised
SIZES: dict[Size, tuple[int, tuple[int, ...], int, int]] = {
    "small": (250_000, (400,), 1, 10),
    "default": (1_000_000, (100, 400, 2000), 4, 20),
    "large": (10_000_000, (100, 400, 2000), 4, 20),
}


@dataclass(frozen=True)
class Quality:
    """See the columns; all but the correlations are over what a full permutation gives."""

    same_shard_pairs: float
    neighbour_correlation: float
    sorted_spread: float
    sky_spread: float
    batch_correlation: float


class Survey:
    """A sorted survey, and how well some batches of it are shuffled.

    Attributes:
        sorted: (samples,) the property that it is sorted by, uniform from 0 to 1.
        sky: (samples,) a property that neighbours share a little, with variance 1.
    """

    def __init__(self, samples: int) -> None:
        random_numbers = np.random.default_rng(0)
        self.sorted = (np.arange(samples) + 0.5) / samples
        patches = random_numbers.normal(size=-(-samples // PATCH)).repeat(PATCH)[:samples]
        noise = random_numbers.normal(size=samples)
        self.sky = np.sqrt(SHARED_VARIANCE) * patches + np.sqrt(1 - SHARED_VARIANCE) * noise

    def quality(self, epochs: Iterable[np.ndarray], shard: int) -> Quality:
        """Of the samples of each lane, (lanes, n) int64 an epoch, in the order in which they are trained on."""
        pairs, neighbours, sorted_variance, sky_variance, batch_correlation = np.mean(
            [self._figures(lanes, shard) for lanes in epochs], axis=0
        ).tolist()
        return Quality(pairs, neighbours, sorted_variance**0.5, sky_variance**0.5, batch_correlation)

    def _figures(self, lanes: np.ndarray, shard: int) -> list[float]:
        each = BATCH // len(lanes)
        steps = lanes.shape[1] // each
        lanes = lanes[:, : steps * each]
        batches = lanes.reshape(len(lanes), steps, each).swapaxes(0, 1).reshape(steps, BATCH)
        means = self.sorted[batches].mean(axis=1)
        along = self.sorted[lanes]
        return [
            self._same_shard_pairs(batches // shard, shard),
            _correlation(along[:, :-1], along[:, 1:]),
            self._variance(self.sorted, batches),
            self._variance(self.sky, batches),
            _correlation(means[:-1], means[1:]),
        ]

    def _same_shard_pairs(self, shards: np.ndarray, shard: int) -> float:
        steps, samples = len(shards), len(self.sorted)
        numbers = np.sort(shards + np.arange(steps)[:, None] * (samples // shard + 1), axis=None)
        counts = np.diff(np.flatnonzero(np.diff(numbers, prepend=-1, append=-1)))
        pairs = (counts * (counts - 1) // 2).sum() / (steps * BATCH * (BATCH - 1) / 2)
        return float(pairs / ((shard - 1) / (samples - 1)))

    def _variance(self, values: np.ndarray, batches: np.ndarray) -> float:
        # Over that of batches drawn from everything without replacement.
        expected = values.var() / BATCH * (len(values) - BATCH) / (len(values) - 1)
        return float(((values[batches].mean(axis=1) - values.mean()) ** 2).mean() / expected)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def ours(samples: int, shard: int, lanes: int, window_shards: int, epochs: int) -> Iterator[np.ndarray]:
    """The samples of some epochs, (lanes, n) each: a sample's number is its place in the survey."""
    order = Order(
        np.full(samples // shard, shard), seed=0, lanes=lanes, global_batch=BATCH, window_shards=window_shards
    )
    for epoch in range(epochs):
        yield np.stack([_lane(order, epoch, lane, shard) for lane in range(lanes)])


def _lane(order: Order, epoch: int, lane: int, shard: int) -> np.ndarray:
    parts = []
    for window in order.windows(epoch, lane):
        piece, row = order.window_samples(window)
        parts.append(np.array([part.shard for part in window.pieces])[piece] * shard + row)
    return np.concatenate(parts)


def buffered(samples: int, shard: int, buffer: int, epochs: int) -> Iterator[np.ndarray]:
    """The same from webdataset: shards shuffled and dealt to readers, each with a shuffle buffer."""
    shuffle = import_module("webdataset.filters")._shuffle
    for epoch in range(epochs):
        shards = permutation(epoch, samples // shard)
        rows = []
        for reader in range(READERS):
            coming = (int(number) * shard + row for number in shards[reader::READERS] for row in range(shard))
            rows.append(np.fromiter(shuffle(coming, buffer, buffer, random.Random(reader)), np.int64))
        yield np.stack([row[: min(map(len, rows))] for row in rows])


def main() -> None:
    samples, shards, epochs, epochs_advised = SIZES[size_asked_for(__doc__)]
    survey = Survey(samples)
    rows: list[list[object]] = []

    def add(name: str, in_flight: int, held: int, found: Quality) -> None:
        rows.append([name, in_flight, held, *vars(found).values()])

    def add_ours(shard: int, lanes: int, window: int, epochs: int) -> Quality:
        found = survey.quality(ours(samples, shard, lanes, window, epochs), shard)
        in_flight = min(lanes * window, samples // shard)
        add(f"shards of {shard}, {lanes} lanes, windows of {window}", in_flight, in_flight * shard, found)
        return found

    for shard in shards:
        for lanes, window in itertools.product(LANES, WINDOWS):
            add_ours(shard, lanes, window, epochs)
        for buffer in BUFFERS:
            found = survey.quality(buffered(samples, shard, buffer, epochs), shard)
            in_flight = READERS * -(-buffer // shard)
            add(f"shards of {shard}, webdataset, {READERS} buffers of {buffer}", in_flight, READERS * buffer, found)
    advised = add_ours(*ADVISED, epochs_advised)
    whole = (permutation(key, samples)[None, :] for key in range(epochs))
    add("full permutation", samples // shards[0], samples, survey.quality(whole, shards[0]))
    print_result(
        Result("shuffle_quality", advised.sorted_spread, "<= 1.5"),
        f"{samples} samples, batches of {BATCH}, {epochs} epochs ({epochs_advised} of the settings advised)",
        ["", "shards", "samples", "same shard", "neighbours", "spread, sorted", "spread, sky", "next batch"],
        rows,
    )


if __name__ == "__main__":
    main()
