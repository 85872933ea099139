"""Put cut-outs onto a dataset's pixels: area-weighted averages of surface brightness about the centre."""

from __future__ import annotations

import numpy as np

from astroclip_dist.data.stored.manifest import ImageLayout
from astroclip_dist.errors import DataError
from shards.grids.overlap import overlap_lengths

_NATIVE_TOLERANCE = 0.002


def resample_image(
    surface_brightness: np.ndarray, pixel_scale_arcsec: float, layout: ImageLayout, where: str
) -> np.ndarray:
    """The central field of a cut-out on the layout's pixels.

    Each new pixel is the average of what it covers, so the flux of a source is kept when values are flux per area of
    the layout's pixel. Legacy Survey cut-outs at any scale are interpolations of the coadd, whose values stay flux per
    native pixel of 0.262 arcsec: they go in as they are. A cut-out at the layout's scale is cropped, not averaged.

    Args:
        surface_brightness: (bands, height, width), flux per area of one pixel of the layout.
        pixel_scale_arcsec: of the cut-out.
        where: the file, for messages.

    Returns:
        (bands, layout.size, layout.size) of the layout's dtype.

    Raises:
        DataError: the cut-out is smaller on the sky than the layout.
    """
    _, height, width = surface_brightness.shape
    scale = pixel_scale_arcsec / layout.pixel_scale_arcsec
    if min(height, width) * scale < layout.size * (1 - _NATIVE_TOLERANCE):
        raise DataError(
            f"{where}: field",
            f"{min(height, width) * pixel_scale_arcsec:.2f} arcsec",
            f"The layout needs {layout.size * layout.pixel_scale_arcsec:.2f} arcsec "
            f"({layout.size} px of {layout.pixel_scale_arcsec}): choose a smaller size or larger cut-outs.",
        )
    if abs(scale - 1) < _NATIVE_TOLERANCE:
        top, left = (height - layout.size) // 2, (width - layout.size) // 2
        resampled = surface_brightness[:, top : top + layout.size, left : left + layout.size]
    else:
        rows, columns = (_averages(pixels, scale, layout.size) for pixels in (height, width))
        resampled = np.stack([rows @ (columns @ band.T).T for band in surface_brightness.astype(np.float64)])
    return np.ascontiguousarray(resampled, dtype=layout.dtype)


def _averages(pixels: int, scale: float, size: int) -> np.ndarray:
    """(size, pixels): the weights, summing to 1, of the input pixels in each of the central output pixels."""
    shared = overlap_lengths((np.arange(pixels + 1) - pixels / 2) * scale, np.arange(size + 1) - size / 2).toarray()
    return shared / shared.sum(axis=1, keepdims=True)
