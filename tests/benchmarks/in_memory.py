"""A source that costs nothing: galaxies of full size from memory. A file of its own, so that Ray's workers find it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from shards.sample import Sample


@functools.cache
def galaxies() -> list[Sample]:
    """Some galaxies of full size, made once in each process."""
    random = np.random.default_rng(0)
    image, spectrum = ImageLayout(), SpectrumLayout()
    return [
        Sample(
            f"{number}",
            random.normal(size=image.shape).astype(np.float32),
            random.normal(size=spectrum.size).astype(np.float32),
            random.uniform(size=spectrum.size).astype(np.float32),
            {"redshift": number / 100, "ra": 10.0, "dec": -3.0},
        )
        for number in range(32)
    ]


class InMemory:
    """The same few galaxies again and again, under new keys."""

    name = "memory"
    image: ImageLayout | None = ImageLayout()
    spectrum: SpectrumLayout | None = SpectrumLayout()
    ivar = True
    partitions = 1

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def describe(self) -> dict[str, str | int | float | bool | None]:
        return {"samples": self.samples}

    def keys(self, partition: int) -> list[str]:
        return [f"memory-{number}" for number in range(self.samples)]

    def read(self, partition: int, rows: Sequence[int]) -> Iterator[Sample]:
        for row in rows:
            known = galaxies()[row % len(galaxies())]
            yield Sample(f"memory-{row}", known.image, known.spectrum, known.ivar, known.metadata)
