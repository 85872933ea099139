"""The match table: which row of one catalogue is which row of another, as one Parquet file.

Columns: ``key_a``, ``key_b`` (string); ``separation_arcsec`` (float64, at the match's epoch; null where the match is by
identifier); ``index_a``, ``index_b`` (int64): rows of the catalogues; ``shard_a``, ``row_a``, ``shard_b``, ``row_b``:
places in the datasets, null for catalogues that do not come from one. Sorted by ``index_a``, which for the catalogue
of a dataset is the order of its shards and rows. The schema's metadata hold one JSON, ``astroclip_match``: method,
radius, epochs, inputs, counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from astroclip_dist.errors import DataError
from astroclip_dist.store import Store
from shards.crossmatch.buckets import Buckets
from shards.crossmatch.files import put_file, split_url

METADATA = b"astroclip_match"
SCHEMA = pa.schema(
    [
        ("key_a", pa.string()),
        ("key_b", pa.string()),
        ("separation_arcsec", pa.float64()),
        ("index_a", pa.int64()),
        ("index_b", pa.int64()),
        ("shard_a", pa.string()),
        ("row_a", pa.int32()),
        ("shard_b", pa.string()),
        ("row_b", pa.int32()),
    ]
)
# What a range of index_a holds at most fits in memory; a row group is what a joined build reads at once.
_RANGE_ROWS = 1 << 19
ROW_GROUP = 1 << 14


class MatchTableWriter:
    """Collects pairs in any order on the local disk, and writes them in order of ``index_a``.

    Args:
        folder: for temporary files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pairs = Buckets(folder / "pairs", SCHEMA)
        self.matched = 0

    def add(self, a: pa.Table, b: pa.Table, separation: np.ndarray | None) -> None:
        """Take in pairs.

        Args:
            a, b: n rows each, with ``key``, ``index``, ``shard``, ``row``.
            separation: (n,) arcsec.
        """
        columns = {
            f"{name}_{side}": table.column(name)
            for side, table in (("a", a), ("b", b))
            for name in ("key", "index", "shard", "row")
        }
        columns["separation_arcsec"] = pa.nulls(len(a), pa.float64()) if separation is None else pa.array(separation)
        pairs = pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
        for batch in pairs.combine_chunks().to_batches():
            self._pairs.add(batch.column("index_a").to_numpy() // _RANGE_ROWS, batch)
        self.matched += len(a)

    def write(self, url: str, description: dict[str, Any]) -> None:
        """Write the table whole or not at all; one of the same name is replaced.

        Raises:
            StorageError: the disk is full, or the storage refuses.
        """
        schema = SCHEMA.with_metadata({METADATA: json.dumps(description, sort_keys=True).encode()})
        file = self._folder / "match.parquet"
        with pq.ParquetWriter(file, schema) as writer:
            for number in sorted(self._pairs.rows):
                pairs = self._pairs.read(number)
                writer.write_table(pairs.sort_by("index_a").cast(schema), row_group_size=ROW_GROUP)
                self._pairs.discard(number)
        put_file(url, file)


class MatchTable:
    """A match table, read by rows.

    Args:
        url: a path, which stays where it is, or a URL, which is fetched whole.

    Raises:
        DataError: not there, or not such a table.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        mend = "Make it with `astroclip shards match`."
        folder, name = split_url(url)
        store = Store(folder)
        path = store.local_path(name)
        try:
            self._file = pq.ParquetFile(path) if path is not None else pq.ParquetFile(pa.BufferReader(store.read(name)))
        except FileNotFoundError as error:
            raise DataError(url, "no such file", mend) from error
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(url, "not a Parquet file", mend) from error
        metadata = self._file.schema_arrow.metadata or {}
        missing = [name for name in SCHEMA.names if name not in self._file.schema_arrow.names]
        if METADATA not in metadata or missing:
            found = f"no column {', '.join(missing)}" if missing else "no description in its schema"
            raise DataError(url, f"not a match table: {found}", mend)
        self.description: dict[str, Any] = json.loads(metadata[METADATA])
        groups = [self._file.metadata.row_group(number).num_rows for number in range(self._file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(groups)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, stop: int, columns: Sequence[str]) -> pa.Table:
        """Rows [start, stop) of some columns."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        table = self._file.read_row_groups(list(range(first, last)), columns=list(columns), use_threads=False)
        return table.slice(start - int(self._starts[first]), stop - start)
