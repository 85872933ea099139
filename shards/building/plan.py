"""Which galaxy goes into which shard: a stream of shard plans over the keys of a source, in bounded memory.

The split of a galaxy follows from its key, its shard from its place among the galaxies of that split in the order of
the source. Shards cross the borders of partitions, so that many small files do not make many small shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TextIO

import numpy as np

from astroclip_dist.data.stored.manifest import SPLITS, Split
from astroclip_dist.errors import DataError
from astroclip_dist.progress import with_progress
from shards.source import Origin
from shards.writing.dataset_folder import shard_name
from shards.writing.seen_keys import SeenKeys, hash_keys

Duplicates = Literal["refuse", "first"]


@dataclass
class ShardPlan:
    """One shard to be made.

    Attributes:
        parts: partitions of the source and rows of them, in the order of the source.
        keys: of all rows.
    """

    name: str
    split: Split
    parts: list[tuple[int, np.ndarray]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def digest(self) -> str:
        """The same for the same rows and keys."""
        content = hashlib.sha256("\n".join(self.keys).encode())
        for partition, rows in self.parts:
            content.update(np.array([partition, len(rows), *rows], "<i8").tobytes())
        return content.hexdigest()


class Tally(NamedTuple):
    """How much a plan is: galaxies and shards to be made, and galaxies left out because their keys came before."""

    samples: int
    shards: int
    duplicates: int


class _Listing(NamedTuple):
    """The galaxies of a partition: their keys, which of them are new, and their places in ``SPLITS``."""

    partition: int
    keys: Sequence[str]
    new: np.ndarray
    splits: np.ndarray


@dataclass(frozen=True)
class Plan:
    """The division of a source into shards; :meth:`shards` may be run any number of times.

    Attributes:
        samples_per_shard: every shard of a split but the last has so many.
        split_fractions: share of each split.
        duplicates: "refuse" a key that comes twice, or take its "first" galaxy only.
    """

    source: Origin
    samples_per_shard: int
    split_fractions: dict[Split, float]
    duplicates: Duplicates = "refuse"

    def count(self, progress: TextIO | None = None) -> Tally:
        """Go through all keys once, so that one that comes twice is found before any work.

        Args:
            progress: where to report (standard error when None).

        Raises:
            DataError: a partition that cannot be read, or a key that comes twice.
        """
        samples, duplicates = np.zeros(len(SPLITS), np.int64), 0
        listed: Generator[_Listing] = self._partitions()
        if self.source.partitions > 1:
            listed = with_progress(listed, self.source.partitions, "partitions listed", progress)
        with closing(listed):
            for listing in listed:
                samples += np.bincount(listing.splits[listing.new], minlength=len(SPLITS))
                duplicates += int(np.count_nonzero(~listing.new))
        shards = -(-samples // self.samples_per_shard)
        return Tally(samples=int(samples.sum()), shards=int(shards.sum()), duplicates=duplicates)

    def shards(self) -> Iterator[ShardPlan]:
        """All shards; each comes as soon as it is full, those of the rest last.

        Raises:
            DataError: as :meth:`count`.
        """
        filling: dict[Split, ShardPlan] = {}
        numbers = dict.fromkeys(SPLITS, 0)
        for listing in self._partitions():
            for place, split in enumerate(SPLITS):
                rows = np.flatnonzero(listing.new & (listing.splits == place))
                while len(rows):
                    if split not in filling:
                        filling[split] = ShardPlan(shard_name(split, numbers[split]), split)
                        numbers[split] += 1
                    shard = filling[split]
                    taken, rows = np.split(rows, [self.samples_per_shard - len(shard.keys)])
                    shard.parts.append((listing.partition, taken))
                    shard.keys += [listing.keys[row] for row in taken]
                    if len(shard.keys) == self.samples_per_shard:
                        yield filling.pop(split)
        yield from filling.values()

    def _partitions(self) -> Generator[_Listing]:
        seen = SeenKeys()
        for partition in range(self.source.partitions):
            keys = self.source.keys(partition)
            hashes = hash_keys(keys)
            new = seen.add(hashes)
            if self.duplicates == "refuse" and not new.all():
                raise self._duplicate(partition, int(np.argmin(new)), keys, hashes)
            yield _Listing(partition, keys, new, split_places(hashes, self.split_fractions))

    def _duplicate(self, partition: int, row: int, keys: Sequence[str], hashes: np.ndarray) -> DataError:
        first = self._first_place(hashes[row])
        return DataError(
            f"sample {keys[row]}: key",
            f"came twice: row {first[1]} of partition {first[0]} and row {row} of partition {partition}"
            f" of the source {self.source.name}, counted from 0",
            "Keep one row or file of each galaxy, or take the first with --duplicates first.",
        )

    def _first_place(self, key: np.uint64) -> tuple[int, int]:
        """Partition and row where a key came first; the keys are read once more, since nobody remembers places."""
        for partition in range(self.source.partitions):
            found = np.flatnonzero(hash_keys(self.source.keys(partition)) == key)
            if len(found):
                return partition, int(found[0])
        raise DataError(f"source {self.source.name}", "other keys than before", "Its input changed during the build.")


def split_places(hashes: np.ndarray, fractions: dict[Split, float]) -> np.ndarray:
    """The splits of many galaxies, as :func:`astroclip_dist.data.stored.manifest.split_of` says, to the last bit.

    Args:
        hashes: (n,) uint64 of their keys.

    Returns:
        (n,) places in ``SPLITS``.
    """
    place = hashes.astype(np.float64) / 2.0**64
    largest = SPLITS.index(max(fractions, key=lambda split: fractions[split]))
    found = np.full(len(hashes), -1)
    for number, split in enumerate(SPLITS):
        place -= fractions.get(split, 0.0)
        found[(found < 0) & (place < 0)] = number
    found[found < 0] = largest
    return found
