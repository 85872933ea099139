"""Multimodal Universe's ``gz10``: Galaxy10 DECaLS, 17,736 pictures of galaxies with one of ten classes each.

Published by scripts/gz10 of MultimodalUniverse from https://astronn.readthedocs.io/en/latest/galaxy10.html: 8-bit
pictures of 256 px in red, green, blue (z, r, g), not fluxes.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from astroclip_dist.data.preprocessing.rgb import from_rgb
from astroclip_dist.data.stored.manifest import ImageLayout
from astroclip_dist.errors import DataError
from shards.grids.image_grid import resample_image
from shards.sample import Sample
from shards.sources.mmu_file import Field, Form, Galaxy
from shards.sources.mmu_source import MmuSource

_SIZE = 152
_CLASSES = 10
_CLIPPED = 255


class MmuGz10(MmuSource):
    """The source ``mmu-gz10``: images without spectrum, with ``gz10_label`` 0 to 9.

    The colours are inverted to nanomaggies as if they had the Legacy Survey viewer's stretch
    (:func:`astroclip_dist.data.preprocessing.rgb.from_rgb`); the data set does not say which they have, so the fluxes
    are right in order only, and each sample says so with ``image_stretch``. The published ``object_id`` is the galaxy's
    row in the one file of Galaxy10 DECaLS, which is final: the key is ``gz10-ROW``.

    Args:
        inputs: files or folders.
        size: of the images, in pixels of 0.262 arcsec.
    """

    name = "mmu-gz10"
    form: ClassVar = Form(
        fields={"picture": Field("images", (None, None, 3), "u", "rgb_image", ("bytes",))},
        scalars={
            "ra": ("ra",),
            "dec": ("dec",),
            "redshift": ("redshift",),
            "gz10_label": ("ans", "gz10_label"),
            "image_pixel_scale_arcsec": ("pxscale", "rgb_pixel_scale"),
        },
    )

    def __init__(self, inputs: Sequence[Path], size: int = _SIZE) -> None:
        super().__init__(inputs)
        self._layout = ImageLayout(size=size)
        self.image: ImageLayout | None = self._layout

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--size", type=int, default=_SIZE, help="image size in px of 0.262 arcsec (default 152)")

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(args.inputs, args.size)

    def describe(self) -> dict[str, str | int | float | bool | None]:
        return {
            **super().describe(),
            "flux": "approximate: inverted from 8-bit colours, whose stretch is assumed; see image_stretch",
        }

    def _key(self, identifier: str) -> str:
        return f"gz10-{identifier}"

    def _sample(self, key: str, galaxy: Galaxy, where: str) -> Sample:
        label, scale = galaxy.scalars.get("gz10_label"), galaxy.scalars.get("image_pixel_scale_arcsec")
        if not isinstance(label, int) or not 0 <= label < _CLASSES:
            raise DataError(f"{where}: gz10_label", label, f"It is 0 to {_CLASSES - 1}.")
        if not isinstance(scale, float) or not 0 < scale < 10:
            raise DataError(f"{where}: pixel scale", scale, "It is in arcsec, 0.262 for most galaxies.")
        picture = galaxy.arrays["picture"]
        colours = _decode(picture, where) if isinstance(picture, bytes) else picture
        if colours.dtype != np.uint8:
            raise DataError(f"{where}: picture", f"dtype {colours.dtype}", "It has 8 bits a colour.")
        # The first row of a picture is its top, north; of a FITS cut-out its bottom, south.
        upright = torch.from_numpy(colours[::-1].copy()).permute(2, 0, 1)
        flux = from_rgb(upright.to(torch.float64) / 255.0).numpy()
        metadata = {
            **galaxy.scalars,
            "image_stretch": "picture, legacy-viewer assumed",
            "image_clipped_fraction": float((colours == _CLIPPED).mean()),
        }
        return Sample(key, image=resample_image(flux, scale, self._layout, where), metadata=metadata)


def _decode(picture: bytes, where: str) -> np.ndarray:
    """(height, width, 3) uint8."""
    try:
        with Image.open(io.BytesIO(picture)) as file:
            return np.array(file.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise DataError(f"{where}: picture", f"not a readable image ({error})", "Fetch the file again.") from error
