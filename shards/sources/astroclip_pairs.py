"""What AstroCLIP's paired HDF5 file and its Arrow and Parquet exports share: one galaxy's arrays made into a sample.

The pairs were written by ``export_data.py`` of https://github.com/PolymathicAI/AstroCLIP from the Legacy Survey images
of Stein et al., (bands, height, width), with ``image.T``: they lie as (width, height, bands), and the loader transposes
them back (``datamodule.py``, ``permute(0, 3, 2, 1)``). The exports of ``dataset.py`` keep that order.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import DataError
from shards.grids.stored_image import add_dtype_argument, stored_image
from shards.sample import Sample

IMAGE_AXES = ("auto", "whc", "hwc", "chw", "cwh")
_BANDS = 3
# The share of each group of the file, from its start, that ``dataset.py`` calls train.
TRAIN_SHARE = 0.8


@dataclass(frozen=True)
class PairFormat:
    """How the images of a file lie, and how a dataset stores them.

    Args:
        image, spectrum: the dataset's layouts.
        image_axes: order of the axes as stored: c(hannel), h(eight), w(idth). "auto" finds the axis of the bands by its
            length and takes the orders that are documented: "whc" when it is the last, "chw" when it is the first.
    """

    image: ImageLayout
    spectrum: SpectrumLayout
    image_axes: str = "auto"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add_dtype_argument(parser)
        parser.add_argument(
            "--image-axes",
            choices=IMAGE_AXES,
            default="auto",
            help="order of width, height, channels in the file; a square image does not show whether it is transposed "
            "(default auto: whc, as AstroCLIP wrote it, or chw where the channels come first)",
        )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(ImageLayout(dtype=args.dtype), SpectrumLayout(), args.image_axes)

    def transposition(self, shape: tuple[int, ...], where: str) -> tuple[int, ...]:
        """The order of the stored axes that gives (bands, height, width).

        Args:
            shape: of one image as stored.
            where: the file and dataset, for messages.

        Raises:
            DataError: no axis, or more than one, has the length of the bands; the size is not the layout's; or the
                bands are not where ``image_axes`` says.
        """
        size = self.image.size
        if len(shape) != 3 or sorted(shape) != sorted(self.image.shape):
            raise DataError(
                f"{where}: images", f"shape {shape}", f"Each has {_BANDS} bands and {size} x {size} pixels."
            )
        place = shape.index(_BANDS)
        documented = {0: "chw", 2: "whc"}.get(place)
        axes = documented if self.image_axes == "auto" else self.image_axes
        if axes is None or axes.index("c") != place:
            raise DataError(
                f"{where}: images",
                f"shape {shape}, axes {self.image_axes}",
                "The bands are not where --image-axes has them.",
            )
        return tuple(axes.index(axis) for axis in "chw")

    def sample(
        self,
        targetid: int,
        stored: np.ndarray,
        spectrum: np.ndarray,
        redshift: float,
        split: str | None,
        where: str,
    ) -> Sample:
        """One pair.

        Args:
            stored: the image with its axes as stored, nanomaggies a pixel.
            spectrum: (7781,) or (7781, 1), 1e-17 erg/s/cm2/A.
            split: upstream's, None when the file does not say.
            where: the file and row, for messages.

        Raises:
            DataError: an image, spectrum or redshift that cannot be used.
        """
        where = f"{where} ({targetid})"
        image = stored_image(stored.transpose(self.transposition(stored.shape, where)), self.image, where)
        if spectrum.shape not in ((self.spectrum.size,), (self.spectrum.size, 1)):
            raise DataError(f"{where}: spectrum", f"shape {spectrum.shape}", f"It is ({self.spectrum.size}, 1).")
        flux = np.ascontiguousarray(spectrum.reshape(-1), dtype=self.spectrum.dtype)
        if not np.isfinite(flux).all() or not flux.any():
            found = "0 everywhere" if np.isfinite(flux).all() else f"{(~np.isfinite(flux)).sum()} values not finite"
            raise DataError(f"{where}: spectrum", found, "Leave the galaxy out.")
        if not np.isfinite(redshift):
            raise DataError(f"{where}: redshift", redshift, "Leave the galaxy out.")
        metadata: dict[str, Any] = {"targetid": targetid, "redshift": redshift}
        if split is not None:
            metadata["upstream_split"] = split
        return Sample(str(targetid), image=image, spectrum=flux, metadata=metadata)
