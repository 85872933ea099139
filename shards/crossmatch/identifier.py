"""Match two catalogues by identifier in bounded memory: rows go to files by the hash of it, then file by file."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from astroclip_dist.errors import DataError
from astroclip_dist.progress import with_progress
from shards.crossmatch.buckets import Buckets
from shards.crossmatch.match_table import MatchTableWriter
from shards.crossmatch.table import PLACE, ROWS_AT_ONCE, CatalogueTable, Columns, places, text_column

Duplicates = Literal["refuse", "first"]
# Rows of both catalogues in one file, on average; so many more lie there only if most have one identifier.
ROWS_IN_MEMORY = 1 << 18
_MANY = 8
_SCHEMA = pa.schema([("key", pa.string()), ("index", pa.int64()), *PLACE.items(), ("identifier", pa.string())])


def match_by_identifier(
    a: CatalogueTable,
    b: CatalogueTable,
    out_url: str,
    identifier_a: Sequence[str],
    identifier_b: Sequence[str],
    *,
    columns_a: Columns | None = None,
    columns_b: Columns | None = None,
    duplicates: Duplicates = "refuse",
    skip_missing: bool = False,
    rows_in_memory: int = ROWS_IN_MEMORY,
    progress: TextIO | None = None,
) -> dict[str, Any]:
    """Write the match table of rows with the same identifier.

    Args:
        identifier_a, identifier_b: its columns, integers or text; several count as one.
        columns_a, columns_b: of these only the key is used.
        duplicates: an identifier that a catalogue has twice stops the match, or its first row counts and the others
            are counted.
        skip_missing: leave rows without identifier out, and count them, instead of stopping.

    Returns:
        The description that lies in the table's metadata.

    Raises:
        DataError: a column or identifier is missing, an identifier comes twice, or columns are of a wrong kind.
        StorageError: no space for temporary files, or the storage refuses.
    """
    sides = {"a": (a, columns_a or Columns(), identifier_a), "b": (b, columns_b or Columns(), identifier_b)}
    files = -(-(a.rows + b.rows) // rows_in_memory)
    skipped, doubled = {"a": 0, "b": 0}, {"a": 0, "b": 0}
    with tempfile.TemporaryDirectory(prefix="astroclip-match-") as name:
        folder = Path(name)
        writer = MatchTableWriter(folder)
        buckets = {}
        for side, (table, columns, identifier) in sides.items():
            buckets[side] = Buckets(folder / side, _SCHEMA)
            blocks = -(-table.rows // ROWS_AT_ONCE)
            for rows in with_progress(
                _identified(table, columns, identifier, skip_missing), blocks, f"blocks of {side}", progress
            ):
                found = rows.filter(pc.is_valid(rows.column("identifier")))
                skipped[side] += rows.num_rows - found.num_rows
                buckets[side].add(_hashes(found.column("identifier")) % files, found)
        for number in with_progress(range(files), files, "parts", progress):
            unique = {}
            for side, (table, _, _) in sides.items():
                if buckets[side].rows.get(number, 0) > _MANY * rows_in_memory:
                    raise DataError(
                        f"{table.path}: {', '.join(sides[side][2])}",
                        f"{buckets[side].rows[number]:,} rows with the same few values",
                        "Name columns that identify a row.",
                    )
                rows = buckets[side].read(number)
                unique[side] = _first_of_each(rows, str(table.path), duplicates)
                doubled[side] += rows.num_rows - unique[side].num_rows
                buckets[side].discard(number)
            partner = pc.index_in(unique["b"].column("identifier"), unique["a"].column("identifier").combine_chunks())
            matched = pc.is_valid(partner)
            writer.add(unique["a"].take(partner.filter(matched)), unique["b"].filter(matched), None)
        description: dict[str, Any] = {
            "method": "identifier",
            "matched": writer.matched,
        }
        for side, (table, _, identifier) in sides.items():
            description |= {
                f"catalogue_{side}": table.path.name,
                f"dataset_{side}": table.dataset,
                f"identifier_{side}": list(identifier),
                f"rows_{side}": table.rows,
                f"skipped_{side}": skipped[side],
                f"duplicates_{side}": doubled[side],
                f"unmatched_{side}": table.rows - skipped[side] - doubled[side] - writer.matched,
            }
        writer.write(out_url, description)
    return description


def _identified(
    table: CatalogueTable, columns: Columns, identifier: Sequence[str], skip_missing: bool
) -> Iterator[pa.RecordBatch]:
    where = str(table.path)
    for start, piece in table.batches([*columns.key, *identifier], optional=tuple(PLACE)):
        key, text = text_column(piece, columns.key, where), text_column(piece, identifier, where)
        for name, column, stops in (("key", key, True), ("identifier", text, not skip_missing)):
            if column.null_count and stops:
                row = start + int(column.is_null().to_numpy().argmax())
                mend = "Every row needs one." if name == "key" else "Leave such rows out with --skip-missing."
                raise DataError(f"{where}: row {row}", f"no {name}", mend)
        rows = {"key": key, "index": np.arange(start, start + len(piece)), **places(piece), "identifier": text}
        yield from pa.table(rows, schema=_SCHEMA).combine_chunks().to_batches()


def _hashes(identifiers: pa.Array) -> np.ndarray:
    """(n,) int64; the same text has the same hash in both catalogues."""
    texts = identifiers.cast(pa.binary()).to_pylist()
    return np.fromiter(map(zlib.crc32, texts), np.int64, len(texts))


def _first_of_each(rows: pa.Table, where: str, duplicates: Duplicates) -> pa.Table:
    """The first row of each identifier."""
    _, first = np.unique(rows.column("identifier").to_numpy(zero_copy_only=False).astype(str), return_index=True)
    if len(first) == rows.num_rows:
        return rows
    if duplicates == "refuse":
        again = int(np.setdiff1d(np.arange(rows.num_rows), first)[0])
        raise DataError(
            f"{where}: row {rows.column('index')[again]}",
            f"identifier {rows.column('identifier')[again]} came before",
            "Keep one row of each, or take the first one of each with --duplicates first.",
        )
    return rows.take(pa.array(np.sort(first)))
