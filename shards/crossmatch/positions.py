"""The rows of a catalogue as unit vectors at the epoch of the match."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from astroclip_dist.errors import ConfigError, DataError
from shards.crossmatch.sky import move, unit_vectors
from shards.crossmatch.table import PLACE, CatalogueTable, Columns, numbers, places, text_column

VECTOR = ("x", "y", "z")
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("index", pa.int64()),
        *PLACE.items(),
        *((name, pa.float64()) for name in VECTOR),
    ]
)


def match_epoch(a: Columns, b: Columns, epoch: float | None) -> float | None:
    """The Julian year to which catalogues with proper motions are moved; None where nothing moves.

    Unless given, it is that of the catalogue that cannot move; if both can, that of b.

    Raises:
        ConfigError: proper motions without an epoch, an epoch without proper motions, or no epoch to move to.
    """
    moving = [columns for columns in (a, b) if columns.proper_motion]
    if not moving:
        if epoch is not None:
            raise ConfigError("--epoch", epoch, "Neither catalogue has proper motions: name their columns.")
        return None
    if any(columns.epoch is None for columns in moving):
        raise ConfigError("epoch", "unknown", "A catalogue with proper motions needs its epoch (--epoch-a, --epoch-b).")
    if epoch is not None:
        return epoch
    target = b.epoch if len(moving) == 2 else next(side for side in (a, b) if not side.proper_motion).epoch
    if not isinstance(target, float):
        raise ConfigError("--epoch", "not given", "Say to which Julian year positions are moved, such as 2016.0.")
    return target


class PositionedRows:
    """Reads a catalogue in pieces with the columns of ``SCHEMA``.

    Args:
        epoch: Julian year to move to where the catalogue has proper motions.
        skip_missing: leave rows without position out instead of stopping.

    Attributes:
        skipped: rows left out so far.
        unmoved: rows taken as they are because they have no proper motion or epoch, in a catalogue that has.
    """

    def __init__(self, table: CatalogueTable, columns: Columns, epoch: float | None, skip_missing: bool) -> None:
        self._table, self._columns, self._epoch, self._skip_missing = table, columns, epoch, skip_missing
        self._where = str(table.path)
        self.skipped = self.unmoved = 0

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, in order.

        Raises:
            DataError: a column or key is missing, or a position is missing or impossible.
        """
        names = [*self._columns.key, *self._columns.position, *(self._columns.proper_motion or ())]
        if self._columns.proper_motion and isinstance(self._columns.epoch, str):
            names.append(self._columns.epoch)
        for start, piece in self._table.batches(names, optional=tuple(PLACE)):
            ra, dec = (numbers(piece, name, self._where) for name in self._columns.position)
            there = self._check(start, ra, dec)
            piece, ra, dec = piece.filter(pa.array(there)), ra[there], dec[there]
            vectors = self._vectors(piece, ra, dec)
            index = start + np.flatnonzero(there)
            key = text_column(piece, self._columns.key, self._where)
            if key.null_count:
                row = int(index[key.is_null().to_numpy().argmax()])
                raise DataError(f"{self._where}: row {row}", "no key", "Every row needs one.")
            columns = {"key": key, "index": index, **places(piece)}
            columns |= {name: vectors[:, axis] for axis, name in enumerate(VECTOR)}
            yield from pa.table(columns, schema=SCHEMA).combine_chunks().to_batches()

    def _check(self, start: int, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        """(n,) bool: rows that have a position."""
        there = np.isfinite(ra) & np.isfinite(dec)

        def refuse(bad: np.ndarray, mend: str) -> DataError:
            row = int(bad.argmax())
            return DataError(f"{self._where}: row {start + row}", f"ra {ra[row]}, dec {dec[row]}", mend)

        if not there.all() and not self._skip_missing:
            raise refuse(~there, "Give every row a position, or leave such rows out with --skip-missing.")
        outside = there & ((ra < 0) | (ra > 360) | (abs(dec) > 90))
        if outside.any():
            raise refuse(outside, "Right ascension is 0 to 360 deg, declination -90 to 90 deg.")
        self.skipped += int((~there).sum())
        return there

    def _vectors(self, piece: pa.Table, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        if not self._columns.proper_motion:
            return unit_vectors(ra, dec)
        assert self._epoch is not None
        epoch = self._columns.epoch
        motion_ra, motion_dec = (numbers(piece, name, self._where) for name in self._columns.proper_motion)
        since = numbers(piece, epoch, self._where) if isinstance(epoch, str) else np.full(len(ra), epoch, np.float64)
        known = np.isfinite(motion_ra) & np.isfinite(motion_dec) & np.isfinite(since)
        self.unmoved += int((~known).sum())
        vectors = unit_vectors(ra, dec)
        vectors[known] = move(ra[known], dec[known], motion_ra[known], motion_dec[known], self._epoch - since[known])
        return vectors
