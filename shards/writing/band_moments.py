"""Mean and spread of every band over many images, in parts that are merged one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from astroclip_dist.data.stored.manifest import BandStatistics


class BandMoments(BaseModel):
    """Number of pixels of a band, and of each band the mean and the sum of squared deviations from it, in float64.

    Merging is that of Chan, Golub and LeVeque (1979). It rounds, so that the order of merging matters in the last
    digit: a dataset's are merged shard after shard. JSON keeps every bit.
    """

    model_config = ConfigDict(frozen=True)

    pixels: int
    mean: tuple[float, ...]
    squares: tuple[float, ...]

    def merged(self, other: BandMoments) -> BandMoments:
        """Those of the pixels of both."""
        total = self.pixels + other.pixels
        shift = np.subtract(other.mean, self.mean)
        mean = self.mean + shift * (other.pixels / total)
        squares = np.add(self.squares, other.squares) + shift**2 * (self.pixels * (other.pixels / total))
        return BandMoments(pixels=total, mean=mean.tolist(), squares=squares.tolist())

    def statistics(self, bands: Sequence[str]) -> tuple[BandStatistics, ...]:
        """As the manifest keeps them."""
        return tuple(
            BandStatistics(band=band, mean=mean, std=(squares / self.pixels) ** 0.5)
            for band, mean, squares in zip(bands, self.mean, self.squares, strict=True)
        )


class MomentsOfImages:
    """Adds up images of one shape."""

    def __init__(self) -> None:
        self._pixels = 0
        self._means: list[np.ndarray] = []
        self._squares: list[np.ndarray] = []

    def add(self, image: np.ndarray) -> None:
        """Take (bands, height, width) of any floating type."""
        flux = image.reshape(len(image), -1).astype(np.float64)
        mean = flux.mean(axis=1)
        flux -= mean[:, None]
        self._pixels = flux.shape[1]
        self._means.append(mean)
        self._squares.append(np.einsum("bp,bp->b", flux, flux))

    def whole(self) -> BandMoments | None:
        """Those of all images since the beginning; None where there were none."""
        if not self._means:
            return None
        means = np.array(self._means)
        mean = means.mean(axis=0)
        squares = np.sum(self._squares, axis=0) + self._pixels * ((means - mean) ** 2).sum(axis=0)
        return BandMoments(pixels=self._pixels * len(means), mean=mean.tolist(), squares=squares.tolist())


def merge(parts: Sequence[BandMoments | None]) -> BandMoments | None:
    """All parts in their order; None where there is nothing."""
    whole: BandMoments | None = None
    for part in parts:
        if part is not None:
            whole = part if whole is None else whole.merged(part)
    return whole
