"""The last step of an image on its way into a dataset: checked, and in the dtype that the dataset stores."""

from __future__ import annotations

import argparse

import numpy as np

from astroclip_dist.data.stored.manifest import ImageLayout
from astroclip_dist.errors import DataError


def add_dtype_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--dtype float32|float16``, the ``dtype`` of a source's :class:`ImageLayout`."""
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the images in the dataset; float16 halves their size and keeps 3 to 4 digits (default float32)",
    )


def stored_image(flux: np.ndarray, layout: ImageLayout, where: str) -> np.ndarray:
    """An image as the dataset stores it.

    Args:
        flux: (bands, height, width), nanomaggies a pixel.
        where: the file and row, for messages.

    Returns:
        (bands, layout.size, layout.size) of the layout's dtype.

    Raises:
        DataError: another shape, a value that is not finite, a band that is 0 in every pixel (the survey has no data
            there), or a value beyond the range of the dtype (65504 for float16).
    """
    if flux.shape != layout.shape:
        raise DataError(f"{where}: image", f"shape {flux.shape}", f"It is {layout.shape}: bands, height, width.")
    finite = np.isfinite(flux)
    if not finite.all():
        raise DataError(
            f"{where}: image", f"{finite.size - np.count_nonzero(finite)} pixels not finite", "Leave the galaxy out."
        )
    empty = [band for band, pixels in zip(layout.bands, flux, strict=True) if not pixels.any()]
    if empty:
        raise DataError(f"{where}: image", f"no data in {', '.join(empty)} (0 in every pixel)", "Leave the galaxy out.")
    with np.errstate(over="ignore"):
        image = np.ascontiguousarray(flux, dtype=layout.dtype)
    if not np.isfinite(image).all():
        raise DataError(
            f"{where}: image",
            f"{np.abs(flux).max():.6g} nanomaggies, too large for {layout.dtype}",
            "Use --dtype float32, or leave the galaxy out.",
        )
    return image
