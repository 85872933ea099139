"""Read tables that ``datasets`` wrote, Arrow streams and Parquet, in batches; errors name file and column."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from astroclip_dist.errors import DataError

# Names and types of columns that are no text, too, are ValueErrors.
_DAMAGED = (pa.ArrowException, OSError, ValueError, TypeError)
# A stream that ends without it was cut at a batch's end, which the reader takes for the end of the table.
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_PARQUET_NAME = re.compile(r"(?P<split>[a-z]+)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?\.parquet")
# Rows of Parquet that are decoded at a time.
_PARQUET_ROWS = 64


@dataclass(frozen=True)
class ArrowFile:
    """One file of a table.

    Args:
        path: an Arrow stream, or Parquet when its name ends so.
        split: its name in ``dataset_dict.json`` or in the file's name, when it is there.
    """

    path: Path
    split: str | None

    def batches(self, columns: Sequence[str], rows: np.ndarray | None) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Record batches with the columns, and the row at which each starts.

        Args:
            rows: increasing; only batches that hold any of them are read (None: all).

        Raises:
            DataError: the file cannot be read, ends too early or lacks a column.
        """
        parts = self._parquet_batches if self.path.suffix == ".parquet" else self._stream_batches
        try:
            yield from parts(list(columns), rows)
        except FileNotFoundError as error:
            raise DataError(str(self.path), "no such file", "Check the path.") from error
        except _DAMAGED as error:
            reason = " ".join(str(error).split())
            raise DataError(
                str(self.path),
                f"not readable ({reason})",
                "Fetch it again: it is damaged, truncated or another format.",
            ) from error

    def _stream_batches(self, columns: list[str], rows: np.ndarray | None) -> Iterator[tuple[int, pa.RecordBatch]]:
        with self.path.open("rb") as file:
            file.seek(-min(len(_END_OF_STREAM), os.fstat(file.fileno()).st_size), os.SEEK_END)
            if file.read() != _END_OF_STREAM:
                raise DataError(
                    str(self.path), "no end of stream", "Fetch it again: it is truncated, or no Arrow stream."
                )
        with pa.memory_map(str(self.path)) as source, pa.ipc.open_stream(source) as stream:
            self._check(columns, stream.schema)
            start = 0
            for batch in stream:
                if _any_between(rows, start, start + batch.num_rows):
                    chosen = batch.select(columns)
                    # Offsets of a damaged file would lead outside the mapped memory.
                    chosen.validate(full=True)
                    yield start, chosen
                start += batch.num_rows

    def _parquet_batches(self, columns: list[str], rows: np.ndarray | None) -> Iterator[tuple[int, pa.RecordBatch]]:
        with pq.ParquetFile(self.path, buffer_size=1 << 20, page_checksum_verification=True) as file:
            self._check(columns, file.schema_arrow)
            start = 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                if _any_between(rows, start, end):
                    place = start
                    for batch in file.iter_batches(_PARQUET_ROWS, [group], columns, use_threads=False):
                        if _any_between(rows, place, place + batch.num_rows):
                            yield place, batch
                        place += batch.num_rows
                start = end

    def _check(self, columns: list[str], schema: pa.Schema) -> None:
        missing = [name for name in columns if schema.names.count(name) != 1]
        if missing:
            raise DataError(
                str(self.path), f"no column {', '.join(missing)}", f"It has {', '.join(schema.names) or 'none'}."
            )


def find_arrow_files(path: Path) -> list[ArrowFile]:
    """The files of a folder of ``save_to_disk`` or of Parquet, in their order; a file stands for itself.

    Raises:
        DataError: neither; a folder that lacks some of its files.
    """
    if path.is_file() and path.suffix == ".arrow":
        return [ArrowFile(path, None)]
    if path.is_file() and path.suffix == ".parquet":
        return [_parquet_file(path)]
    if (path / "dataset_dict.json").is_file():
        splits = _read_json(path / "dataset_dict.json", "splits", str)
        return [file for split in splits for file in _saved(path / split, split)]
    if (path / "state.json").is_file():
        return _saved(path, None)
    found = sorted(path.rglob("*.parquet")) if path.is_dir() else []
    if not found:
        raise DataError(
            str(path),
            "no table" if path.exists() else "no such file or folder",
            "Give a folder of save_to_disk (with dataset_dict.json or state.json), Parquet, or files *.arrow.",
        )
    _check_complete(path, found)
    return [_parquet_file(file) for file in found]


def nested_values(column: pa.Array, where: str) -> np.ndarray:
    """The one row of a column of nested lists (as ``Array2D``, ``Array3D`` are stored) as an array, without a copy.

    Args:
        where: file, row and column, for messages.

    Raises:
        DataError: absent, ragged, or no numbers in floating point.
    """
    values = column.storage if isinstance(column, pa.ExtensionArray) else column
    shape: list[int] = []
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        lengths = pc.min_max(pc.list_value_length(values)).as_py()
        if values.null_count or lengths["min"] is None or lengths["min"] != lengths["max"]:
            raise DataError(where, "absent" if values.null_count else "ragged", "Leave the galaxy out.")
        shape.append(lengths["max"])
        values = values.flatten()
    if not pa.types.is_floating(values.type) or values.null_count:
        raise DataError(
            where, f"{values.type}, {values.null_count} values absent", "It is a full array in floating point."
        )
    return values.to_numpy(zero_copy_only=True).reshape(shape)


def _any_between(rows: np.ndarray | None, start: int, end: int) -> bool:
    return rows is None or bool(np.searchsorted(rows, start) < np.searchsorted(rows, end))


def _saved(folder: Path, split: str | None) -> list[ArrowFile]:
    """The files of one Dataset of ``save_to_disk``."""
    state = folder / "state.json"
    files = [entry.get("filename") for entry in _read_json(state, "_data_files", dict)]
    if not files or not all(isinstance(name, str) for name in files):
        raise DataError(str(state), "no names of files", "Save the dataset again.")
    if _read_json(state, "_indices_data_files", dict, default=[]):
        # Old versions of datasets kept a selection or an order of rows beside the table.
        raise DataError(str(state), "an index table", "Save flatten_indices() of the dataset instead.")
    return [ArrowFile(folder / name, split) for name in files]


def _read_json(path: Path, field: str, kind: type, default: list[Any] | None = None) -> list[Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise DataError(str(path), "no such file", "The folder is not complete: save or fetch it again.") from error
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"not readable ({error})", "Save or fetch the dataset again.") from error
    found = content.get(field, default) if isinstance(content, dict) else None
    if found is None and default is not None:
        return default
    if not isinstance(found, list) or not all(isinstance(entry, kind) for entry in found):
        raise DataError(f"{path}: {field}", found, "Save or fetch the dataset again.")
    return found


def _parquet_file(path: Path) -> ArrowFile:
    name = _PARQUET_NAME.fullmatch(path.name)
    return ArrowFile(path, name["split"] if name else None)


def _check_complete(folder: Path, files: list[Path]) -> None:
    """Names such as ``train-00012-of-00138.parquet`` tell how many there should be."""
    counts: dict[str, tuple[int, set[int]]] = {}
    for file in files:
        if name := _PARQUET_NAME.fullmatch(file.name):
            counts.setdefault(name["split"], (int(name["count"]), set()))[1].add(int(name["number"]))
    for split, (count, numbers) in counts.items():
        if len(numbers) < count:
            raise DataError(
                f"{folder}: {split}",
                f"{len(numbers)} of {count} files",
                "Fetch the others, or name the files themselves to do without.",
            )
