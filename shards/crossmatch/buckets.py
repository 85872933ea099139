"""Rows sorted into many files on the local disk, so that each file fits in memory whatever the number of rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from astroclip_dist.errors import StorageError


class Buckets:
    """Numbered buckets of rows in a folder, one Arrow file each; rows keep the order in which they came.

    No file stays open: there may be more buckets than a process may hold files.

    Args:
        folder: created; nobody else writes there.
        schema: of the rows.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._folder, self._schema = folder, schema
        self.rows: dict[int, int] = {}
        folder.mkdir(parents=True)

    def add(self, buckets: np.ndarray, rows: pa.RecordBatch) -> None:
        """Append rows.

        Args:
            buckets: (n,) int64, the bucket of each row.

        Raises:
            StorageError: the disk is full.
        """
        if len(buckets) == 0:
            return
        order = np.argsort(buckets, kind="stable")
        ordered = rows.take(pa.array(order))
        numbers, starts = np.unique(buckets[order], return_index=True)
        stops = np.append(starts[1:], len(buckets))
        try:
            for number, start, stop in zip(numbers.tolist(), starts.tolist(), stops.tolist(), strict=True):
                with self._path(number).open("ab") as file, pa.ipc.new_stream(file, self._schema) as stream:
                    stream.write_batch(ordered.slice(start, stop - start))
                self.rows[number] = self.rows.get(number, 0) + stop - start
        except OSError as error:
            raise StorageError(
                f"temporary folder {self._folder}", error.strerror, "Set TMPDIR to a folder with more room."
            ) from error

    def batches(self, bucket: int) -> Iterator[pa.RecordBatch]:
        """The rows of one bucket, in pieces of what was added at once."""
        if bucket not in self.rows:
            return
        path = self._path(bucket)
        size = path.stat().st_size
        with pa.memory_map(str(path)) as file:
            while file.tell() < size:
                yield from pa.ipc.open_stream(file)

    def read(self, bucket: int) -> pa.Table:
        """All rows of one bucket."""
        return pa.Table.from_batches(self.batches(bucket), schema=self._schema)

    def discard(self, bucket: int) -> None:
        """Remove a bucket that has been used."""
        if self.rows.pop(bucket, 0):
            self._path(bucket).unlink()

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket}.arrows"
