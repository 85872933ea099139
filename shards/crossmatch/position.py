"""Match two catalogues by position in bounded memory: cut the sky into pixels on disk, then go pixel by pixel.

Each row goes into the file of its pixel and, near a border, also into those of the pixels around it, so that every
pixel sees all rows within two radii: one to the partners of its rows, another to their other partners. A pair counts in
the pixel of its row of a. A pixel with more rows than shall be in memory is cut again, as often as needed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa

from astroclip_dist.errors import ConfigError, DataError
from astroclip_dist.progress import with_progress
from shards.crossmatch.buckets import Buckets
from shards.crossmatch.match_table import MatchTableWriter
from shards.crossmatch.nearest import mutual_nearest
from shards.crossmatch.positions import SCHEMA, VECTOR, PositionedRows, match_epoch
from shards.crossmatch.sky import Sky, chord, fine_order, separation_arcsec
from shards.crossmatch.table import ROWS_AT_ONCE, CatalogueTable, Columns

LARGEST_RADIUS_ARCSEC = 1800.0
# Of both catalogues together; some 200 bytes a row.
ROWS_IN_MEMORY = 1 << 20
# At first a pixel gets a sixteenth of that where rows are spread over the sky; at most 768 pixels, because with more
# the files get few rows at a time.
_FIRST_SHARE = 16
_LARGEST_FIRST_ORDER = 3
_ORDERS_AT_ONCE = 2
_MARGIN_RADII = 2.0
_SCHEMA = SCHEMA.append(pa.field("pixel", pa.int64()))


def match_by_position(
    a: CatalogueTable,
    b: CatalogueTable,
    out_url: str,
    radius_arcsec: float,
    *,
    columns_a: Columns | None = None,
    columns_b: Columns | None = None,
    epoch: float | None = None,
    skip_missing: bool = False,
    rows_in_memory: int = ROWS_IN_MEMORY,
    progress: TextIO | None = None,
) -> dict[str, Any]:
    """Write the match table of mutual nearest neighbours (:mod:`shards.crossmatch.nearest`).

    Args:
        radius_arcsec: inclusive.
        epoch: Julian year to which catalogues with proper motions are moved (:func:`match_epoch`).
        skip_missing: leave rows without position out, and count them, instead of stopping.
        rows_in_memory: pixels with more are cut again.

    Returns:
        The description that lies in the table's metadata.

    Raises:
        ConfigError: a radius or epochs that make no sense.
        DataError: a column is missing, a position is missing or impossible, or too many rows lie in one place.
        StorageError: no space for temporary files, or the storage refuses.
    """
    if not 0 < radius_arcsec <= LARGEST_RADIUS_ARCSEC:
        raise ConfigError("--radius", radius_arcsec, f"It is in arcsec: above 0, at most {LARGEST_RADIUS_ARCSEC:.0f}.")
    sides = {"a": (a, columns_a or Columns()), "b": (b, columns_b or Columns())}
    epoch = match_epoch(sides["a"][1], sides["b"][1], epoch)
    first_order = _first_order(a.rows + b.rows, rows_in_memory)
    rows = {side: PositionedRows(*catalogue, epoch, skip_missing) for side, catalogue in sides.items()}
    with tempfile.TemporaryDirectory(prefix="astroclip-match-") as name:
        folder = Path(name)
        writer = MatchTableWriter(folder)
        work = _PixelMatch(radius_arcsec, rows_in_memory, writer)
        whole_sky = {}
        for side, (table, _) in sides.items():
            blocks = with_progress(rows[side].batches(), -(-table.rows // ROWS_AT_ONCE), f"blocks of {side}", progress)
            whole_sky[side] = work.distribute((work.with_pixel(block) for block in blocks), first_order, folder / side)
        pixels = sorted(set(whole_sky["a"].rows) & set(whole_sky["b"].rows))
        for pixel in with_progress(pixels, len(pixels), "pixels", progress):
            work.match(pixel, first_order, whole_sky["a"], whole_sky["b"], folder / "parts")
        description: dict[str, Any] = {
            "method": "position: mutual nearest neighbours",
            "radius_arcsec": radius_arcsec,
            "epoch": "not moved: positions as they are" if epoch is None else epoch,
            "matched": writer.matched,
        }
        for side, (table, columns) in sides.items():
            description |= {
                f"catalogue_{side}": table.path.name,
                f"dataset_{side}": table.dataset,
                f"epoch_{side}": "unknown" if columns.epoch is None else columns.epoch,
                f"rows_{side}": table.rows,
                f"skipped_{side}": rows[side].skipped,
                f"unmatched_{side}": table.rows - rows[side].skipped - writer.matched,
                f"ambiguous_{side}": work.ambiguous[side],
                f"moved_{side}": columns.proper_motion is not None,
                f"unmoved_rows_{side}": rows[side].unmoved,
            }
        writer.write(out_url, description)
    return description


def _first_order(rows: int, rows_in_memory: int) -> int:
    order = 0
    while order < _LARGEST_FIRST_ORDER and rows * _FIRST_SHARE > rows_in_memory * 12 * 4**order:
        order += 1
    return order


@dataclass
class _PixelMatch:
    """Distributes rows over pixels, and matches those of one pixel.

    Attributes:
        ambiguous: rows of a, and of b, with more than one row of the other catalogue within the radius.
    """

    radius_arcsec: float
    rows_in_memory: int
    writer: MatchTableWriter

    def __post_init__(self) -> None:
        self._sky = Sky(max(fine_order(_MARGIN_RADII * self.radius_arcsec), _LARGEST_FIRST_ORDER))
        self.ambiguous = {"a": 0, "b": 0}

    def with_pixel(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Rows with their fine pixel."""
        return rows.append_column(_SCHEMA.field("pixel"), pa.array(self._sky.pixels(_vectors(rows))))

    def distribute(self, batches: Iterable[pa.RecordBatch], order: int, folder: Path) -> Buckets:
        """Put rows into the files of all pixels that must see them."""
        pixels = Buckets(folder, _SCHEMA)
        for rows in batches:
            pixel, places = self._sky.copies(rows.column("pixel").to_numpy(), order)
            pixels.add(pixel, rows.take(pa.array(places)))
        return pixels

    def match(self, pixel: int, order: int, a: Buckets, b: Buckets, folder: Path) -> None:
        """Match the rows of a pixel, and remove their files."""
        count = a.rows.get(pixel, 0) + b.rows.get(pixel, 0)
        if pixel not in a.rows or pixel not in b.rows:
            pass
        elif count <= self.rows_in_memory:
            self._match_in_memory(pixel, order, a.read(pixel), b.read(pixel))
        else:
            self._cut(pixel, order, a, b, folder, count)
        a.discard(pixel)
        b.discard(pixel)

    def _cut(self, pixel: int, order: int, a: Buckets, b: Buckets, folder: Path, count: int) -> None:
        finer = min(order + _ORDERS_AT_ONCE, self._sky.order)
        if finer == order:
            raise DataError(
                f"HEALPix pixel {pixel} of nside {1 << order}",
                f"{count:,} rows within some {8 * self.radius_arcsec:g} arcsec",
                "A match within so crowded a place means nothing: check the positions (placeholders?) and the radius.",
            )
        part_a = self.distribute(a.batches(pixel), finer, folder / f"{pixel}-{finer}-a")
        part_b = self.distribute(b.batches(pixel), finer, folder / f"{pixel}-{finer}-b")
        # Rows copied from around the pixel have parts there, too, which are matched with the pixel they belong to.
        first, last = (part << 2 * (finer - order) for part in (pixel, pixel + 1))
        for part in range(first, last):
            self.match(part, finer, part_a, part_b, folder)
        for rest in (part_a, part_b):
            for part in list(rest.rows):
                rest.discard(part)

    def _match_in_memory(self, pixel: int, order: int, a: pa.Table, b: pa.Table) -> None:
        found = mutual_nearest(
            _vectors(a),
            a.column("index").to_numpy(),
            _vectors(b),
            b.column("index").to_numpy(),
            chord(self.radius_arcsec),
        )
        own_a, own_b = (self._sky.coarsen(rows.column("pixel").to_numpy(), order) == pixel for rows in (a, b))
        self.ambiguous["a"] += int((found.candidates_a[own_a] > 1).sum())
        self.ambiguous["b"] += int((found.candidates_b[own_b] > 1).sum())
        ours = own_a[found.a]
        if ours.any():
            self.writer.add(
                a.take(pa.array(found.a[ours])),
                b.take(pa.array(found.b[ours])),
                separation_arcsec(found.squared_chord[ours]),
            )


def _vectors(rows: pa.RecordBatch | pa.Table) -> np.ndarray:
    """(n, 3) float64."""
    return np.stack([rows.column(name).to_numpy() for name in VECTOR], axis=1)
