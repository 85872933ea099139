"""One galaxy as every source hands it to the writer, and the checks that keep bad data out of a dataset."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import DataError

KEY_PATTERN = re.compile(r"[A-Za-z0-9_+-]+")


@dataclass
class Sample:
    """A galaxy: image, spectrum or both, and what its source knows about it.

    Args:
        key: survey identifier (``TARGETID`` or ``release-brickid-objid``); letters, digits, ``_``, ``+``, ``-``.
        image: (bands, H, W), nanomaggies a pixel.
        spectrum: (wavelengths,), 1e-17 erg/s/cm2/A on the dataset's grid.
        ivar: (wavelengths,), inverse variance of the spectrum; 0 = masked.
        metadata: identifiers, ra and dec (deg), ebv, redshift, labels; absent is absent, never NaN or None.
    """

    key: str
    image: np.ndarray | None = None
    spectrum: np.ndarray | None = None
    ivar: np.ndarray | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def check_sample(sample: Sample, image: ImageLayout | None, spectrum: SpectrumLayout | None) -> None:
    """Refuse a sample that does not fit the dataset's layout.

    Raises:
        DataError: a key with a dot, a wrong shape or dtype, a flux that is not finite, a negative inverse variance,
            NaN in the metadata, or neither image nor spectrum.
    """

    def refuse(what: str, value: object, mend: str) -> DataError:
        return DataError(f"sample {sample.key}: {what}", value, mend)

    if not KEY_PATTERN.fullmatch(sample.key):
        raise refuse(
            "key", repr(sample.key), "Use letters, digits, '_', '+' and '-' only: a dot would end the key in the tar."
        )
    if sample.image is None and sample.spectrum is None:
        raise refuse("members", "none", "A sample has an image, a spectrum, or both.")
    for name, array, layout in (
        ("image", sample.image, image),
        ("spectrum", sample.spectrum, spectrum),
        ("ivar", sample.ivar, spectrum),
    ):
        if array is None:
            continue
        if layout is None:
            raise refuse(name, "present", f"The dataset's layout has no {name}.")
        if array.shape != layout.shape:
            raise refuse(f"{name} shape", array.shape, f"The dataset's is {layout.shape}: crop, resample or convert.")
        if array.dtype != np.dtype(layout.dtype):
            raise refuse(f"{name} dtype", array.dtype, f"The dataset's is {layout.dtype}.")
        if not np.isfinite(array).all():
            raise refuse(
                name, f"{np.count_nonzero(~np.isfinite(array))} values not finite", "Mask or drop them at the source."
            )
    if sample.ivar is not None and (sample.ivar < 0).any():
        raise refuse("ivar", f"minimum {sample.ivar.min()}", "Inverse variance is >= 0, with 0 for masked.")
    for name, value in sample.metadata.items():
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            raise refuse(f"metadata {name}", value, "Leave an absent value out.")


def encode_metadata(sample: Sample) -> bytes:
    """The bytes of ``KEY.json``: sorted keys, no NaN, the same for the same content."""
    return json.dumps(sample.metadata, sort_keys=True, allow_nan=False).encode()
