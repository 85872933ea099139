"""Mean and spread of every band over many images, in parts that are merged one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from astroclip_dist.data.manifest import BandStatistics


class BandMoments(BaseModel):
    """Number of pixels of a band, and of each band the mean and the sum of squared deviations from it, in float64.

    Merging is that of Chan, Golub and LeVeque (1979). It rounds, so that the order of merging matters in the last
    digit: a dataset's are merged shard after shard. JSON keeps every bit.
    """

    model_config = ConfigDict(frozen=True)

    pixels: int
    mean: tuple[float, ...]
    squares: tuple[float, ...]

    @classmethod
    def of_image(cls, image: np.ndarray) -> Self:
        """Those of one image, (bands, height, width)."""
        flux = image.reshape(len(image), -1).astype(np.float64)
        mean = flux.mean(axis=1)
        flux -= mean[:, None]
        return cls(pixels=flux.shape[1], mean=mean.tolist(), squares=np.einsum("bp,bp->b", flux, flux).tolist())

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


def merge(parts: Sequence[BandMoments | None]) -> BandMoments | None:
    """All parts in their order; None where there is nothing."""
    whole: BandMoments | None = None
    for part in parts:
        if part is not None:
            whole = part if whole is None else whole.merged(part)
    return whole
