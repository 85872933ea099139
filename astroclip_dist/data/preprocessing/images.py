"""Images to the input of the image encoder: the centre crop of evaluation, and the stretch of the flux."""

from __future__ import annotations

from torch import Tensor

from astroclip_dist.config.model import BandScale, Stretch
from astroclip_dist.data.preprocessing.rgb import BAND_SCALES, arcsinh, to_rgb
from astroclip_dist.errors import DataError

# Brings the sky's noise near 0.2 and bright nuclei near 2, in every band.
_ASINH_GAIN, _ASINH_RANGE = 10.0, 3.0


def stretch(flux: Tensor, how: Stretch, zscore: BandScale | None = None) -> Tensor:
    """Compress the dynamic range of (n, 3, H, W) fluxes in nanomaggies, bands g, r, z; float32.

    ``rgb`` is the viewer's colour stretch that AstroCLIP's code uses, cut to [0, 1]. ``asinh`` stretches each band by
    itself and loses nothing at bright centres. ``zscore`` (AstroCLIP's text) is linear: mean 0 and standard deviation 1
    of each band over the data set, by the numbers given.
    """
    flux = flux.float()
    if how == "rgb":
        return to_rgb(flux)
    if zscore is not None and how == "zscore":
        mean, std = (flux.new_tensor(numbers).view(3, 1, 1) for numbers in (zscore.mean, zscore.std))
        return (flux - mean).div_(std)
    scales = flux.new_tensor(BAND_SCALES).view(3, 1, 1)
    return arcsinh(flux * (scales * _ASINH_GAIN)).div_(_ASINH_RANGE)


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The middle (n, bands, size, size) of (n, bands, H, W) images.

    Raises:
        DataError: the images are smaller.
    """
    height, width = images.shape[-2:]
    if min(height, width) < size:
        raise DataError(
            "objective.image.crop", size, f"The dataset's images have {height} x {width} pixels: choose a smaller crop."
        )
    top, left = (height - size) // 2, (width - size) // 2
    return images[..., top : top + size, left : left + size]
