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
_FLOOR = 1e-6


def to_rgb(flux: Tensor) -> Tensor:
    """Stretch fluxes to colours.

    Args:
        flux: (..., 3, H, W), bands g, r, z, nanomaggies a pixel.

    Returns:
        (..., 3, H, W), channels red, green, blue in [0, 1], of flux's dtype.
    """
    scales = flux.new_tensor(BAND_SCALES).view(3, 1, 1)
    scaled = flux * scales + OFFSET
    intensity = scaled.clamp_min(0).mean(dim=-3, keepdim=True).clamp_min(_FLOOR)
    stretched = torch.asinh(Q * intensity) / Q**0.5
    return (scaled * (stretched / intensity)).clamp(0, 1).flip(-3)


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
