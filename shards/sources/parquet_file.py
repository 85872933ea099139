"""Read rows of a Parquet row group, nested columns as dense arrays, with errors that name file and column."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from astroclip_dist.errors import DataError

_DAMAGED = (OSError, pa.ArrowException, ValueError, KeyError, TypeError)
# Rows decoded at a time: 16 images of 4 bands with inverse variances are some 15 MB.
_BATCH_ROWS = 16
# Of each column; with pre_buffer, or without a buffer, all that a row group holds of it would be in memory at once.
_BUFFER_BYTES = 1 << 20


def count_row_groups(path: Path) -> int:
    """How many row groups a file has.

    Raises:
        DataError: no such file, no Parquet, or one that ends too early.
    """
    with _open(path) as file:
        return file.num_row_groups


class ParquetGroup:
    """One row group of a file.

    Raises:
        DataError: the file cannot be read, or has no such group.
    """

    def __init__(self, path: Path, group: int) -> None:
        self._path, self._group = path, group
        with _open(path) as file:
            if group >= file.num_row_groups:
                raise DataError(
                    str(path), f"{file.num_row_groups} row groups", "The file changed since it was planned."
                )
            self._schema = file.schema_arrow
            self.columns = set(self._schema.names)
            self._rows = file.metadata.row_group(group).num_rows

    def column(self, name: str) -> list[Any]:
        """A whole column, its nulls as None.

        Raises:
            DataError: missing or not readable.
        """
        if name not in self.columns:
            raise DataError(f"{self._path} column {name}", "missing", "The file is of another format.")
        with _open(self._path) as file:
            try:
                return file.read_row_group(self._group, columns=[name]).column(name).to_pylist()
            except _DAMAGED as error:
                raise _damaged(self._path, error) from error

    def member(self, column: str, names: Sequence[str], optional: bool = False) -> str | None:
        """The first of some names that a column of structs, or of lists of structs, has.

        Args:
            optional: None where it has none of them.

        Raises:
            DataError: no such column or member, or a column of another type.
        """
        where = f"{self._path} column {column}"
        if column not in self.columns:
            raise DataError(where, "missing", "The file is of another format.")
        kind = self._schema.field(column).type
        structs = kind.value_type if _is_list(kind) else kind
        if not pa.types.is_struct(structs):
            raise DataError(where, f"of type {kind}", "It is a struct, or a list of structs, in this format.")
        found = next((name for name in names if structs.get_field_index(name) >= 0), None)
        if found is None and not optional:
            raise DataError(f"{where}.{names[0]}", "missing", "The file is of another format.")
        return found

    def rows(self, rows: Sequence[int], columns: Sequence[str]) -> Iterator[Record]:
        """Some rows; the group is decoded up to the last of them, a few rows at a time.

        Args:
            rows: increasing.

        Raises:
            DataError: a column is missing or not readable, or a row lies beyond the end.
        """
        if len(rows) and rows[-1] >= self._rows:
            raise DataError(
                f"{self._path} row group {self._group}",
                f"{self._rows} rows, not {rows[-1] + 1}",
                "The file changed since it was planned.",
            )
        for name in columns:
            if name not in self.columns:
                raise DataError(f"{self._path} column {name}", "missing", "The file is of another format.")
        with _open(self._path) as file:
            batches = file.iter_batches(_BATCH_ROWS, row_groups=[self._group], columns=list(columns))
            place, start = 0, 0
            while place < len(rows):
                try:
                    batch = next(batches)
                except (*_DAMAGED, StopIteration) as error:
                    raise _damaged(self._path, error) from error
                while place < len(rows) and rows[place] < start + len(batch):
                    yield Record(batch.slice(rows[place] - start, 1), f"{self._path} row {rows[place]}")
                    place += 1
                start += len(batch)


class Record:
    """One row.

    Args:
        row: a batch of one row.
        where: for messages.
    """

    def __init__(self, row: pa.RecordBatch, where: str) -> None:
        self._row, self._where = row, where

    def scalar(self, column: str) -> int | float | str | bool | None:
        """A number or text; null and NaN are None."""
        value = self._row.column(column)[0].as_py()
        return None if value is None or value == "" or (isinstance(value, float) and math.isnan(value)) else value

    def array(self, column: str, member: str) -> np.ndarray | bytes:
        """A member of a struct (or of the structs of a list, put together), as a dense array or as bytes.

        Raises:
            DataError: null somewhere, or lists of different lengths where they must be alike.
        """
        where = f"{self._where}: {column}.{member}"
        outer = self._row.column(column)
        if outer.null_count:
            raise DataError(where, "null", "The galaxy has no such data.")
        in_list = _is_list(outer.type)
        structs = outer.flatten() if in_list else outer
        found = _storage(structs.field(member))
        if pa.types.is_binary(found.type) or pa.types.is_large_binary(found.type):
            return _bytes(found, where)
        dense = _dense(found, where)
        return dense if in_list else dense[0]


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except FileNotFoundError as error:
        raise DataError(str(path), "no such file", "Check the path.") from error
    except _DAMAGED as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or "it ends too early"
    return DataError(
        str(path), f"not a readable Parquet file ({reason})", "Fetch it again: it is damaged or truncated."
    )


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _storage(array: pa.Array) -> pa.Array:
    # The library `datasets` registers extension types for its arrays as soon as it is imported.
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _bytes(member: pa.Array, where: str) -> bytes:
    value = member[0].as_py() if len(member) == 1 else None
    if not value:
        raise DataError(where, "no bytes", "The picture is not in the file: write it with its pictures embedded.")
    return value


def _dense(array: pa.Array, where: str) -> np.ndarray:
    shape = [len(array)]
    while _is_list(array.type):
        lengths = set(array.value_lengths().to_pylist())
        if array.null_count or len(lengths) != 1:
            raise DataError(where, f"lists of lengths {sorted(map(str, lengths))}", "All must have one length.")
        shape.append(lengths.pop())
        array = _storage(array.flatten())
    if array.null_count:
        raise DataError(where, f"{array.null_count} null values", "Mask them in the file, or drop the galaxy.")
    return array.to_numpy(zero_copy_only=False).reshape(shape)
