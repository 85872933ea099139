"""What reading takes of memory and of the cache, and whether that fits: said before anything is read."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np

from astroclip_dist.config.run import Reading
from astroclip_dist.data.ordering.mixture import SampleOrder
from astroclip_dist.data.ordering.order import Window
from astroclip_dist.data.stored.dataset import Dataset, Shard
from astroclip_dist.errors import ConfigError

# One in training, one waiting for its place in the queue, one being filled.
_BATCHES_BESIDE_THE_QUEUE = 3


def window_bytes(shards: Sequence[Shard], window: Window) -> int:
    """Memory that a window's samples take when they are fetched; none for shards on a local disk."""
    size = 0.0
    for piece in window.pieces:
        shard = shards[piece.shard]
        if not shard.store.is_local:
            size += shard.entry.bytes * len(piece) / shard.entry.samples
    return math.ceil(size)


def check_memory(dataset: Dataset, order: SampleOrder, members: Sequence[str], lanes: int, reading: Reading) -> int:
    """Bytes of ``reading.memory`` that are left for windows beside the batches.

    Args:
        lanes: of one rank.

    Raises:
        ConfigError: too few for one window of each lane, or for the batches.
        DataError: the dataset lacks one of the members.
    """
    layouts = [dataset.layout(member) for member in members]
    sample = sum(math.prod(layout.shape) * np.dtype(layout.dtype).itemsize for layout in layouts)
    batches = (reading.batches_ahead + _BATCHES_BESIDE_THE_QUEUE) * lanes * order.samples_per_lane_step * sample
    windows = 0 if reading.cache else lanes * _window_of_each(dataset, order)
    if batches + windows > reading.memory:
        raise ConfigError(
            "reading.memory",
            f"{reading.memory / 1e9:g} GB",
            f"A rank needs {batches / 1e9:.3g} GB for batches and at least {windows / 1e9:.3g} GB for a window of each "
            f"of its {lanes} lanes: give more, set reading.cache, or take more workers, fewer lanes, or smaller "
            "windows or shards.",
        )
    return reading.memory - batches


def check_cache(dataset: Dataset, order: SampleOrder, lanes: int, reading: Reading) -> None:
    """Whether the cache holds what the ranks of this machine use at once.

    Raises:
        ConfigError: it does not.
    """
    if reading.cache is None:
        return
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # While a lane goes over to its next window it uses two.
    needed = 2 * ranks * lanes * _window_of_each(dataset, order)
    if needed > reading.cache.limit:
        raise ConfigError(
            "reading.cache.limit",
            f"{reading.cache.limit / 1e9:g} GB",
            f"The {ranks} ranks of this machine use up to {needed / 1e9:.3g} GB of shards at once: give more, or take "
            "fewer lanes, or smaller windows or shards.",
        )


def _window_of_each(dataset: Dataset, order: SampleOrder) -> int:
    """The largest windows of all components together, in bytes, as far as they come from object storage."""
    return sum(
        own.window_shards * max((shard.entry.bytes for shard in group if not shard.store.is_local), default=0)
        for own, group in zip(order.components, dataset.groups, strict=True)
    )
