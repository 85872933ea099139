"""Labels of galaxies in memory, found by TARGETID or by position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.spatial import cKDTree

from astroclip_dist.errors import DataError
from shards.crossmatch.sky import chord, unit_vectors
from shards.sample import Sample

RADIUS_ARCSEC = 0.5
_TREE_SLACK = 1.0 + 1e-9
_IDENTITY = ("targetid", "ra", "dec")


class LabelTable:
    """A table of labels: ``targetid`` (int64), or else ``ra`` and ``dec`` (deg), and a column for each label.

    With ``targetid`` a sample is found by its metadata's ``targetid``; otherwise by its ``ra`` and ``dec``: the nearest
    row within the radius, of equally near ones the first.

    Args:
        labels: up to some 100,000 rows; every column but ``targetid``, ``ra`` and ``dec`` is a label.
        name: what it is, for messages and the manifest.
        radius_arcsec: of the match by position, inclusive.

    Raises:
        DataError: no way to find a galaxy, no label, a position or TARGETID missing or impossible, or a TARGETID twice
            with different labels (rows that agree count once).
    """

    def __init__(self, labels: pa.Table, name: str, radius_arcsec: float = RADIUS_ARCSEC) -> None:
        self.name, self.radius_arcsec = name, radius_arcsec
        self.by_targetid = "targetid" in labels.column_names
        names = [column for column in labels.column_names if column not in _IDENTITY]
        if not self.by_targetid and not {"ra", "dec"} <= set(labels.column_names):
            raise DataError(
                name, "no column targetid, nor ra and dec", f"It has {', '.join(labels.column_names[:40])}."
            )
        if not names or len(labels) == 0:
            raise DataError(name, "no labels", "Give a table with label columns and rows.")
        if self.by_targetid:
            targets = _integers(labels, name)
            order = np.argsort(targets, kind="stable")
            self._labels, self._targets = _without_repeats(labels.select(names), targets, order, name)
        else:
            ra, dec = (_finite(labels, column, name) for column in ("ra", "dec"))
            outside = (ra < 0) | (ra > 360) | (abs(dec) > 90)
            if outside.any():
                row = int(outside.argmax())
                raise DataError(
                    f"{name}: row {row}", f"ra {ra[row]}, dec {dec[row]}", "They are 0 to 360 and -90 to 90 deg."
                )
            self._labels = labels.select(names).combine_chunks()
            self._tree = cKDTree(unit_vectors(ra, dec))

    def __len__(self) -> int:
        return self._labels.num_rows

    @property
    def label_names(self) -> Sequence[str]:
        return self._labels.column_names

    def can_find(self, sample: Sample) -> bool:
        """Whether a sample's metadata have what the table is searched by."""
        return all(name in sample.metadata for name in (("targetid",) if self.by_targetid else ("ra", "dec")))

    def find(self, sample: Sample) -> dict[str, Any]:
        """The labels that the table has of a galaxy; absent values are left out."""
        if not self.can_find(sample):
            return {}
        row = self._row_of_target(sample.metadata["targetid"]) if self.by_targetid else self._nearest(sample)
        if row is None:
            return {}
        found = self._labels.slice(row, 1).to_pylist()[0]
        return {
            label: value
            for label, value in found.items()
            if value is not None and value != "" and not (isinstance(value, float) and not math.isfinite(value))
        }

    def _row_of_target(self, target: Any) -> int | None:
        place = int(np.searchsorted(self._targets, np.int64(target)))
        return place if place < len(self._targets) and int(self._targets[place]) == target else None

    def _nearest(self, sample: Sample) -> int | None:
        ra, dec = (np.array([sample.metadata[name]], np.float64) for name in ("ra", "dec"))
        vector = unit_vectors(ra, dec)[0]
        reach = chord(self.radius_arcsec)
        near = np.sort(np.array(self._tree.query_ball_point(vector, reach * _TREE_SLACK), np.int64))
        squared = ((self._tree.data[near] - vector) ** 2).sum(axis=1)
        near, squared = near[squared <= reach**2], squared[squared <= reach**2]
        return int(near[squared.argmin()]) if len(near) else None


def _integers(labels: pa.Table, name: str) -> np.ndarray:
    column = labels.column("targetid")
    if column.null_count:
        raise DataError(f"{name}: targetid", f"{column.null_count} rows without", "Every row needs one.")
    if pa.types.is_floating(column.type):
        raise DataError(f"{name}: targetid", column.type, "Floating point loses digits of a TARGETID: store integers.")
    try:
        return column.cast(pa.int64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{name}: targetid", column.type, "It is a 64-bit integer.") from error


def _finite(labels: pa.Table, column: str, name: str) -> np.ndarray:
    try:
        values = labels.column(column).cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{name}: {column}", labels.column(column).type, "It is a number of degrees.") from error
    bad = ~np.isfinite(values)
    if bad.any():
        raise DataError(f"{name}: row {int(bad.argmax())}: {column}", "absent or NaN", "Every row needs a position.")
    return values


def _without_repeats(
    labels: pa.Table, targets: np.ndarray, order: np.ndarray, name: str
) -> tuple[pa.Table, np.ndarray]:
    """Labels and targets sorted by target, each target once."""
    ordered, sorted_targets = labels.take(pa.array(order)).combine_chunks(), targets[order]
    repeats = np.flatnonzero(sorted_targets[1:] == sorted_targets[:-1]) + 1
    for row in repeats.tolist():
        pair = ordered.slice(row - 1, 2).to_pylist()
        if repr(pair[0]) != repr(pair[1]):  # as text, because NaN differs from itself
            raise DataError(
                f"{name}: targetid {sorted_targets[row]}",
                "twice, with different labels",
                "Keep one row of each galaxy.",
            )
    keep = np.setdiff1d(np.arange(len(ordered)), repeats)
    return ordered.take(pa.array(keep)).combine_chunks(), sorted_targets[keep]
