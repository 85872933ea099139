"""Read Multimodal Universe files, HDF5 and Parquet alike: identifiers at once, galaxies one after the other.

The same data sets are published as HDF5 (``CONFIG/healpix=N/001-of-001.hdf5``: one flat dataset a column) and as
Parquet, where what belongs together is nested: a struct of lists or a list of structs, depending on who wrote it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from astroclip_dist.errors import DataError
from shards.sources.hdf5_file import hdf5_dataset, open_hdf5, plain_values, read_rows, row_blocks
from shards.sources.parquet_file import ParquetGroup, count_row_groups

_HDF5 = {".hdf5", ".h5"}
_PARQUET = {".parquet"}
# The Hub's copies of some data sets hold the Python text of bytes: "b'0421p022-7410'".
_BYTES_TEXT = re.compile(r"b(['\"])(.*)\1")


class Part(NamedTuple):
    """A partition: an HDF5 file, or a row group of a Parquet file."""

    path: Path
    row_group: int | None = None

    def __str__(self) -> str:
        return str(self.path) if self.row_group is None else f"{self.path} row group {self.row_group}"


class Field(NamedTuple):
    """An array of each galaxy, and where both forms keep it.

    Args:
        dataset: of HDF5.
        shape: of one galaxy in HDF5, None where any length will do.
        kinds: numpy's letters of the dtypes that will do ("S": text).
        column: of Parquet.
        members: names that it may have in the column's struct.
        optional: a file may lack it.
    """

    dataset: str
    shape: tuple[int | None, ...]
    kinds: str
    column: str
    members: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True)
class Form:
    """What a data set holds of each galaxy.

    Args:
        fields: arrays.
        scalars: metadata, and the columns that it may come from: the first that is there.
    """

    fields: dict[str, Field]
    scalars: dict[str, tuple[str, ...]]


class Galaxy(NamedTuple):
    """One row of a file: its arrays (a picture of Parquet as its bytes) and its scalars, where they are not null."""

    arrays: dict[str, np.ndarray | bytes]
    scalars: dict[str, int | float | str | bool]


def list_parts(inputs: Sequence[Path]) -> tuple[Part, ...]:
    """The partitions of files, and of all data files in folders, sorted by path within each folder.

    Raises:
        DataError: nothing there, or a Parquet file whose footer cannot be read.
    """
    parts: list[Part] = []
    for path in inputs:
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in _HDF5 | _PARQUET)
            if not files:
                raise DataError(str(path), "no .hdf5, .h5 or .parquet in this folder", "Give a folder of the data set.")
        for file in files:
            if file.suffix in _PARQUET:
                parts += (Part(file, group) for group in range(count_row_groups(file)))
            elif file.suffix in _HDF5:
                parts.append(Part(file))
            else:
                raise DataError(str(file), "neither .hdf5, .h5 nor .parquet", "Give the data set's files.")
    return tuple(parts)


def read_identifiers(part: Part, columns: Sequence[str], optional: Sequence[str] = ()) -> dict[str, list[str]]:
    """Whole columns of integers or text as text; those of ``optional`` only where all of them are there.

    Raises:
        DataError: the part cannot be read, or lacks a column.
    """
    if part.row_group is not None:
        group = ParquetGroup(part.path, part.row_group)
        wanted = [*columns, *(optional if set(optional) <= group.columns else ())]
        return {name: [_text(value) for value in group.column(name)] for name in wanted}
    with open_hdf5(part.path) as file:
        wanted = [*columns, *(optional if set(optional) <= _names(file, part.path) else ())]
        found = {name: hdf5_dataset(file, name, (None,), "iuS") for name in wanted}
        return {name: [_text(value) for value in read_rows(data, range(len(data)))] for name, data in found.items()}


def read_galaxies(part: Part, rows: Sequence[int], form: Form) -> Iterator[Galaxy | DataError]:
    """Some rows, in bounded memory; a row whose arrays cannot be understood comes as the error that says why.

    Args:
        rows: increasing.

    Raises:
        DataError: the part cannot be read, lacks a field, or has one of another shape or dtype.
    """
    if part.row_group is None:
        yield from _read_hdf5(part.path, rows, form)
    else:
        yield from _read_parquet(part, rows, form)


def _read_hdf5(path: Path, rows: Sequence[int], form: Form) -> Iterator[Galaxy]:
    with open_hdf5(path) as file:
        names = _names(file, path)
        fields = {
            name: hdf5_dataset(file, field.dataset, (None, *field.shape), field.kinds)
            for name, field in form.fields.items()
            if not field.optional or field.dataset in names
        }
        chosen = {name: _first(columns, names) for name, columns in form.scalars.items()}
        scalars = {name: hdf5_dataset(file, column, (None,), "iufbS") for name, column in chosen.items() if column}
        _check_lengths(path, [*fields.values(), *scalars.values()])
        largest = max(fields.values(), key=lambda data: math.prod(data.shape[1:]) * data.dtype.itemsize)
        for block in row_blocks(largest, rows):
            arrays = {name: read_rows(data, block) for name, data in fields.items()}
            columns = {name: read_rows(data, block) for name, data in scalars.items()}
            for place in range(len(block)):
                yield Galaxy({name: array[place] for name, array in arrays.items()}, plain_values(columns, place))


def _read_parquet(part: Part, rows: Sequence[int], form: Form) -> Iterator[Galaxy | DataError]:
    assert part.row_group is not None
    group = ParquetGroup(part.path, part.row_group)
    chosen = {name: _first(columns, group.columns) for name, columns in form.scalars.items()}
    present = {name: column for name, column in chosen.items() if column}
    members = {
        name: (field.column, member)
        for name, field in form.fields.items()
        if (member := group.member(field.column, field.members, field.optional)) is not None
    }
    columns = {column for column, _ in members.values()} | set(present.values())
    for record in group.rows(rows, sorted(columns)):
        try:
            arrays = {name: record.array(column, member) for name, (column, member) in members.items()}
        except DataError as error:
            yield error
            continue
        values = {name: record.scalar(column) for name, column in present.items()}
        yield Galaxy(arrays, {name: value for name, value in values.items() if value is not None})


def _names(file: h5py.File, path: Path) -> set[str]:
    try:
        return set(file)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise DataError(str(path), f"not a readable HDF5 file ({error})", "Fetch it again.") from error


def _first(columns: Sequence[str], present: set[str]) -> str | None:
    return next((column for column in columns if column in present), None)


def _check_lengths(path: Path, datasets: Sequence[h5py.Dataset]) -> None:
    lengths = {len(data) for data in datasets}
    if len(lengths) > 1:
        raise DataError(
            str(path), f"columns of {sorted(lengths)} rows", "The file was not written to its end: fetch it again."
        )


def _text(value: object) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    quoted = _BYTES_TEXT.fullmatch(text.strip())
    return quoted.group(2) if quoted else text.strip()
