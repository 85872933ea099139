"""A source of random galaxies for tests of the build: fast, in partitions of uneven size, with faults to order."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import DataError
from shards.sample import Sample
from tests.random_survey import IMAGE, SPECTRUM, random_sample


@dataclass
class ToySource:
    """Galaxies ``toy-0`` ..., as :func:`tests.random_survey.random_sample` makes them.

    Attributes:
        sizes: galaxies of each partition.
        bad: numbers of galaxies that cannot be read.
        infinite: numbers of galaxies whose images are not finite.
        twice: galaxies that come again: their numbers, and the numbers of the galaxies whose keys they take.
        seconds: that every galaxy takes.
        kill_marker: a file; the worker that reads ``kill_at`` creates it and kills itself, unless it is there already.
    """

    sizes: list[int]
    bad: set[int] = field(default_factory=set)
    infinite: set[int] = field(default_factory=set)
    twice: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    kill_marker: Path | None = None
    kill_at: int = -1

    name = "toy"
    image: ImageLayout | None = IMAGE
    spectrum: SpectrumLayout | None = SPECTRUM
    ivar = True

    def describe(self) -> dict[str, str | int | float | bool | None]:
        return {"galaxies": sum(self.sizes)}

    @property
    def partitions(self) -> int:
        return len(self.sizes)

    def _first(self, partition: int) -> int:
        return sum(self.sizes[:partition])

    def keys(self, partition: int) -> list[str]:
        first = self._first(partition)
        numbers = range(first, first + self.sizes[partition])
        return [f"toy-{self.twice.get(number, number)}" for number in numbers]

    def read(self, partition: int, rows: Sequence[int]) -> Iterator[Sample | DataError]:
        keys = self.keys(partition)
        for row in rows:
            number = self._first(partition) + row
            time.sleep(self.seconds)
            if number == self.kill_at and self.kill_marker is not None and not self.kill_marker.exists():
                self.kill_marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if number in self.bad:
                yield DataError(f"toy file {partition} row {row}", "damaged", "Fetch it again.")
                continue
            sample = random_sample(keys[row])
            if number in self.infinite:
                sample.image = np.full(IMAGE.shape, np.inf, np.float32)
            yield sample
