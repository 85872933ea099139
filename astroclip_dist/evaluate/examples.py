"""A few galaxies that were held out of training, read whole, for figures of what a model does with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from astroclip_dist.data.ordering.order import Piece
from astroclip_dist.data.reading.reader import load_piece
from astroclip_dist.data.stored.dataset import Dataset, Shard
from astroclip_dist.data.stored.index import ShardIndex
from astroclip_dist.data.stored.manifest import SPLITS, ImageLayout, SpectrumLayout, Split, key_hash
from astroclip_dist.data.streaming.batch_memory import BatchMemory
from astroclip_dist.data.streaming.filling import BatchArrays
from astroclip_dist.errors import DataError

_HELD_OUT_FIRST: tuple[Split, ...] = ("test", "val", "train")


@dataclass(frozen=True)
class Examples:
    """Some galaxies of one split.

    Attributes:
        keys: n survey identifiers.
        redshift: (n,), NaN where unknown.
        split: ``train`` only where the datasets have no other.
        members: (n, *shape) each, as stored.
    """

    keys: list[str]
    redshift: np.ndarray
    split: Split
    members: dict[str, Tensor]
    image: ImageLayout | None
    spectrum: SpectrumLayout | None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def sample_ids(self) -> np.ndarray:
        """(n,) uint64, the keys' identities."""
        return np.array([key_hash(key) for key in self.keys], np.uint64)

    def title(self, number: int) -> str:
        """A galaxy's key, and its redshift if it is known."""
        z = self.redshift[number]
        return f"{self.keys[number]}, z = {z:.3f}" if np.isfinite(z) else self.keys[number]


def read_examples(
    dataset_urls: Sequence[str], members: Sequence[str], count: int, *, if_there: Sequence[str] = ()
) -> Examples:
    """Up to ``count`` galaxies that have all of some members, chosen by the hash of their key, so that nobody picks the
    pretty ones: of the test split, else of the validation split, else of the training split.

    Only as many shards are looked at as it takes; each galaxy is one ranged read.

    Args:
        if_there: members that are read, too, where the datasets have them.

    Raises:
        DataError: no galaxy has these members.
        StorageError
    """
    dataset = Dataset.open(dataset_urls, SPLITS)
    optional = [member for member in if_there if all(getattr(manifest, member) for manifest in dataset.manifests)]
    members = [*members, *optional]
    for split in _HELD_OUT_FIRST:
        places = _places([shard for shard in dataset.shards if shard.entry.split == split], members, count)
        if places:
            return _read(dataset, split, places, members)
    wanted = " and ".join(members) or "image or spectrum"
    raise DataError(", ".join(dataset.urls), f"no galaxy with {wanted}", "Choose another dataset.")


def _places(shards: Sequence[Shard], members: Sequence[str], count: int) -> list[tuple[Shard, ShardIndex, int]]:
    found: list[tuple[Shard, ShardIndex, int]] = []
    for shard in shards:
        index = shard.read_index()
        there = np.ones(len(index), bool)
        for member in members:
            there &= index.members[member].offset >= 0 if member in index.members else False
        rows = sorted(np.flatnonzero(there).tolist(), key=lambda row: key_hash(index.keys[row]))
        found += [(shard, index, row) for row in rows[: count - len(found)]]
        if len(found) == count:
            break
    return found


def _read(
    dataset: Dataset, split: Split, places: Sequence[tuple[Shard, ShardIndex, int]], members: Sequence[str]
) -> Examples:
    arrays = BatchArrays(dataset, members, len(places), BatchMemory())
    redshift = np.full(len(places), np.nan)
    for place, (shard, index, row) in enumerate(places):
        piece = load_piece(shard, Piece(0, row, row + 1), (*members, "json"), index=index)
        piece.read_arrays(row, arrays.slots(place))
        redshift[place] = json.loads(piece.read_json(row)).get("redshift", np.nan)
    keys = [index.keys[row] for _, index, row in places]
    return Examples(keys, redshift, split, arrays.tensors, dataset.image, dataset.spectrum)
