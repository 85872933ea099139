"""Published numbers of the augmentations. All arrays are in the order g, r, z.

Sources:
    Stein et al. 2021 (arXiv:2110.13151), code ssl-legacysurvey at 06b250b, ``decals_augmentations.py``: fits to the
    DECaLS south catalogue, noise from 43 million galaxies with z < 20 mag, seeing from 2 million with spectra.
    Parker et al. 2024 (AstroCLIP, MNRAS 531, 4990), section 5.1; and its code at 9d85069, ``astrodino``, which has the
    same fits.
"""

from __future__ import annotations

from dataclasses import dataclass

BANDS = ("g", "r", "z")


@dataclass(frozen=True)
class ShiftedLognormal:
    """x = loc + scale exp(shape N(0, 1)), one set of numbers a band; ``scipy.stats.lognorm(shape, loc, scale)``."""

    shape: tuple[float, ...]
    loc: tuple[float, ...]
    scale: tuple[float, ...]


# Noise of a pixel of the coadd, nanomaggies.
PIXEL_NOISE = ShiftedLognormal(
    shape=(0.2264926, 0.2431146, 0.1334844),
    loc=(-0.0006735, -0.0023663, -0.0143416),
    scale=(0.0037602, 0.0067417, 0.0260779),
)
# Gaussian sigma of the point spread function, pixels of 0.262 arcsec.
PSF_SIGMA = ShiftedLognormal(
    shape=(0.2109966, 0.3008485, 0.3471172),
    loc=(1.0807153, 1.2394326, 1.1928363),
    scale=(1.3153171, 0.9164757, 0.8233702),
)
# Galactic E(B-V), magnitudes, cut at the maximum.
EBV = ShiftedLognormal(shape=(0.67306,), loc=(0.001146,), scale=(0.03338,))
EBV_MAX = 1.0
# log10 of the Milky Way's transmission per magnitude of E(B-V).
REDDENING = (-1.2856, -0.866, -0.4844)

# Probability of blur, and of noise, in views for self-distillation (AstroCLIP, section 5.1): the first global view, the
# second, each local view.
FIRST_GLOBAL, SECOND_GLOBAL, LOCAL = 1.0, 0.1, 0.5
