"""What the encoders see of images and spectra as they are stored, without anything random."""

from __future__ import annotations

from torch import Tensor

from astroclip_dist.config.model import ImageEncoder, SpectrumEncoder
from astroclip_dist.data.preprocessing.images import centre_crop, stretch
from astroclip_dist.data.preprocessing.spectra import slice_spectra
from astroclip_dist.errors import DataError


def image_inputs(images: Tensor, config: ImageEncoder) -> Tensor:
    """What the image encoder sees without augmentation: the centre crop, stretched.

    Args:
        images: (n, bands, H, W), nanomaggies.

    Raises:
        DataError: images smaller than the crop.
    """
    return stretch(centre_crop(images, config.crop), config.stretch, config.zscore)


def spectrum_tokens(spectra: Tensor, config: SpectrumEncoder, ivar: Tensor | None = None) -> Tensor:
    """What the spectrum encoder sees: (n, tokens, slice_size + 2).

    Args:
        spectra: (n, bins), 1e-17 erg/s/cm2/A.
        ivar: (n, bins), their inverse variances, needed where the configuration says ``ivar_aware``.

    Raises:
        DataError: spectra without the inverse variances that the encoder needs.
    """
    if not config.ivar_aware:
        return slice_spectra(spectra, config.slice_size, config.slice_stride)
    if ivar is None:
        raise DataError("ivar", "absent", "objective.spectrum.ivar_aware needs the inverse variances of the spectra.")
    return slice_spectra(spectra, config.slice_size, config.slice_stride, ivar, weighted_mean=config.weighted_mean)
