"""Galaxies with a JPEG cut-out and an SDSS spectrum each, listed in a CSV file.

Columns: ``name, ra, dec, z, image, spectrum, image_note`` (others are ignored); paths are relative to the CSV. The note
says what the JPEG is: ``Legacy Survey ...`` or ``SDSS ...``, and its scale as ``... at 0.1 arcsec/px``.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from astroclip_dist.data.preprocessing.rgb import from_rgb
from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import DataError
from shards.grids.image_grid import resample_image
from shards.sample import Sample
from shards.sources.sdss_spectrum import read_sdss_spectrum

# The viewer's JPEGs are 25.6 arcsec wide: 96 px of 0.262 arcsec (eight patches of 12 px) is the largest usual field.
_SIZE = 96
_COLUMNS = ("name", "ra", "dec", "z", "image", "spectrum", "image_note")
_SCALE = re.compile(r"([0-9.]+) ?arcsec/px")
# Of SDSS camera and of the SkyServer's JPEGs, unless asked otherwise.
_SDSS_SCALE_ARCSEC = 0.396
_CLIPPED = 255


@dataclass(frozen=True)
class _Row:
    name: str
    ra: float
    dec: float
    redshift: float
    image: Path
    spectrum: Path
    stretch: str
    pixel_scale_arcsec: float


class Pairs:
    """The source ``pairs``: a sample for each row of a table, which is its one partition.

    The Legacy Survey viewer's colours are inverted to flux (:func:`astroclip_dist.data.preprocessing.rgb.from_rgb`),
    which is exact but for the 8 bits, the JPEG compression, and clipped pixels (a lower limit;
    ``image_clipped_fraction``). SDSS JPEGs (i, r, g with another stretch) are inverted in the same way: their fluxes
    are right in order only, and their samples say so with ``image_stretch``.

    Args:
        table: the CSV file.
        size: of the images, in pixels of 0.262 arcsec.
    """

    name = "pairs"
    spectrum: SpectrumLayout | None = SpectrumLayout()
    ivar = True

    def __init__(self, table: Path, size: int = _SIZE) -> None:
        self.image: ImageLayout | None = ImageLayout(size=size)
        self._table = table
        self._rows = _read_table(table)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("table", metavar="CSV", type=Path, help="columns " + ", ".join(_COLUMNS))
        parser.add_argument("--size", type=int, default=_SIZE, help="image size in px of 0.262 arcsec (default 96)")

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(args.table, args.size)

    def describe(self) -> dict[str, str | int | float | bool | None]:
        return {
            "table": self._table.name,
            "galaxies": len(self._rows),
            "flux": "approximate: inverted from 8-bit JPEG colours; see image_stretch of each sample",
        }

    @property
    def partitions(self) -> int:
        return 1

    def keys(self, partition: int) -> list[str]:
        return [row.name for row in self._rows]

    def read(self, partition: int, rows: Sequence[int]) -> Iterator[Sample | DataError]:
        for row in rows:
            try:
                yield self._read(self._rows[row])
            except DataError as error:
                yield error

    def _read(self, row: _Row) -> Sample:
        assert self.image is not None
        assert self.spectrum is not None
        spectrum = read_sdss_spectrum(row.spectrum, self.spectrum)
        image, clipped = _read_image(row, self.image)
        metadata = {
            "ra": row.ra,
            "dec": row.dec,
            "redshift": row.redshift,
            "image_stretch": row.stretch,
            "image_pixel_scale_arcsec": row.pixel_scale_arcsec,
            "image_clipped_fraction": clipped,
            **spectrum.metadata,
        }
        return Sample(row.name, image, spectrum.flux, spectrum.ivar, metadata)


def _read_table(path: Path) -> list[_Row]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(str(path), f"no column {', '.join(missing)}", f"It needs {', '.join(_COLUMNS)}.")
            rows = [_parse_row(row, f"{path} line {reader.line_num}", path.parent) for row in reader]
    except OSError as error:
        raise DataError(str(path), error.strerror, "Check the path.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(str(path), f"not a CSV file ({error})", "Save it as CSV in UTF-8.") from error
    if not rows:
        raise DataError(str(path), "no rows", "List at least one galaxy.")
    return rows


def _parse_row(row: dict[str, str], where: str, folder: Path) -> _Row:
    numbers = {}
    for column in ("ra", "dec", "z"):
        try:
            numbers[column] = float(row[column])
        except (TypeError, ValueError):
            raise DataError(f"{where}: {column}", repr(row[column]), "Give a number.") from None
    note = row["image_note"] or ""
    stretch = "legacy-viewer" if "legacy" in note.lower() else "sdss-jpeg" if "sdss" in note.lower() else None
    scale = _SCALE.search(note)
    if stretch is None or (scale is None and stretch == "legacy-viewer"):
        raise DataError(
            f"{where}: image_note", repr(note), "Say what the JPEG is, such as 'Legacy Survey DR9 at 0.1 arcsec/px'."
        )
    return _Row(
        name=row["name"],
        ra=numbers["ra"],
        dec=numbers["dec"],
        redshift=numbers["z"],
        image=folder / row["image"],
        spectrum=folder / row["spectrum"],
        stretch=stretch,
        pixel_scale_arcsec=float(scale.group(1)) if scale else _SDSS_SCALE_ARCSEC,
    )


def _read_image(row: _Row, layout: ImageLayout) -> tuple[np.ndarray, float]:
    """The cut-out in nanomaggies a pixel of the layout, and the fraction of its colours that are clipped."""
    try:
        with Image.open(row.image) as file:
            colours = np.array(file.convert("RGB"))
    except FileNotFoundError as error:
        raise DataError(str(row.image), "no such file", "Check the path.") from error
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(str(row.image), f"not a readable image ({error})", "Fetch it again.") from error
    # The first row of a picture is its top, north; of a FITS cut-out its bottom, south.
    upright = torch.from_numpy(colours[::-1].copy()).permute(2, 0, 1)
    flux = from_rgb(upright.to(torch.float64) / 255.0).numpy()
    image = resample_image(flux, row.pixel_scale_arcsec, layout, str(row.image))
    return image, float((colours == _CLIPPED).mean())
