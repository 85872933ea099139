"""Catalogues to match, read in pieces: those of our datasets, and any Parquet or FITS table with named columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from astropy.io import fits

from astroclip_dist.errors import DataError
from shards.sources.fits_file import open_fits

ROWS_AT_ONCE = 1 << 18
# Written by `astroclip shards catalogue` into the schema's metadata.
DATASET_URL = b"astroclip_dataset"
PLACE = {"shard": pa.string(), "row": pa.int32()}
# Of each column; with pre_buffer all row groups read so far would stay in memory.
_BUFFER_BYTES = 1 << 20
_FITS_ENDINGS = (".fits", ".fit", ".fits.gz", ".fits.fz")


@dataclass(frozen=True)
class Columns:
    """How a catalogue names what a match needs.

    Args:
        key: of the galaxy; several are joined by ``-``.
        position: right ascension and declination, deg (ICRS).
        proper_motion: that of right ascension times cos(dec) and that of declination, mas/yr.
        epoch: of the positions: a Julian year, the name of a column of them, or None where nobody knows.
    """

    key: tuple[str, ...] = ("key",)
    position: tuple[str, str] = ("ra", "dec")
    proper_motion: tuple[str, str] | None = None
    epoch: float | str | None = None


class CatalogueTable:
    """A Parquet or FITS table on this machine, one file or a folder of files with the same columns.

    Raises:
        DataError: no such file, one that is neither, or without rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        self._files = [file for file in files if file.name.endswith((".parquet", *_FITS_ENDINGS))]
        if not path.exists():
            raise DataError(str(path), "no such file", "Check the path.")
        if not self._files:
            raise DataError(str(path), "no table", "Give a .parquet or .fits file, or a folder of them.")
        self.rows = sum(_count(file) for file in self._files)
        if self.rows == 0:
            raise DataError(str(path), "no rows", "Give a catalogue that has some.")
        first = self._files[0]
        metadata = (_parquet(first).schema_arrow.metadata or {}) if first.suffix == ".parquet" else {}
        self.dataset = metadata[DATASET_URL].decode() if DATASET_URL in metadata else None

    def column_names(self) -> list[str]:
        """Of the first file."""
        return _names(self._files[0])

    def batches(self, names: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[int, pa.Table]]:
        """Pieces of some columns, each with the number of its first row in the whole catalogue.

        Args:
            optional: read where the table has them.

        Raises:
            DataError: a column is missing, or a file is damaged.
        """
        done = 0
        for file in self._files:
            there = _names(file)
            for name in names:
                if name not in there:
                    raise DataError(f"{file}: column {name}", "absent", f"The table has {', '.join(there[:40])}.")
            wanted = list(dict.fromkeys([*names, *(name for name in optional if name in there)]))
            for table in _parquet_pieces(file, wanted) if file.suffix == ".parquet" else _fits_pieces(file, wanted):
                yield done, table
                done += table.num_rows


def text_column(table: pa.Table, names: Sequence[str], where: str) -> pa.ChunkedArray:
    """Identifier columns as text, joined by ``-``; null where one is null or empty.

    Raises:
        DataError: floating point, which cannot hold every identifier.
    """
    texts = []
    for name in names:
        column = table.column(name)
        if pa.types.is_integer(column.type) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            text = pc.utf8_trim_whitespace(column.cast(pa.string()))
            texts.append(pc.if_else(pc.equal(text, ""), None, text))
        else:
            raise DataError(
                f"{where}: column {name}",
                column.type,
                "Identifiers are integers or text; floating point would lose digits of a TARGETID.",
            )
    return reduce(lambda left, right: pc.binary_join_element_wise(left, right, "-"), texts)


def places(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Shard and row of each galaxy; null for a table that does not come from a dataset."""
    return {
        name: table.column(name).cast(kind)
        if name in table.column_names
        else pa.chunked_array([pa.nulls(len(table), kind)])
        for name, kind in PLACE.items()
    }


def numbers(table: pa.Table, name: str, where: str) -> np.ndarray:
    """A column as (n,) float64, NaN where null.

    Raises:
        DataError: not numbers.
    """
    try:
        return table.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{where}: column {name}", table.column(name).type, "Name a column of numbers.") from error


def _parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(str(file), "not a Parquet file", "Fetch or write it again.") from error


def _count(file: Path) -> int:
    if file.suffix == ".parquet":
        return _parquet(file).metadata.num_rows
    with open_fits(file) as hdus:
        return int(_fits_table(hdus, file).header["NAXIS2"])


def _names(file: Path) -> list[str]:
    if file.suffix == ".parquet":
        return _parquet(file).schema_arrow.names
    with open_fits(file) as hdus:
        return _fits_table(hdus, file).columns.names


def _fits_table(hdus: fits.HDUList, file: Path) -> fits.BinTableHDU:
    for hdu in hdus:
        if isinstance(hdu, fits.BinTableHDU):
            return hdu
    raise DataError(str(file), "no table among its HDUs", "Give a catalogue.")


def _parquet_pieces(file: Path, names: list[str]) -> Iterator[pa.Table]:
    try:
        for batch in _parquet(file).iter_batches(ROWS_AT_ONCE, columns=names, use_threads=False):
            yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(str(file), f"damaged ({error})", "Fetch or write it again.") from error


def _fits_pieces(file: Path, names: list[str]) -> Iterator[pa.Table]:
    # Mapped, so that it need not fit in memory; whether it is sound was checked when its rows were counted.
    with fits.open(file, memmap=True) as hdus:
        data = _fits_table(hdus, file).data
        for start in range(0, len(data), ROWS_AT_ONCE):
            part = data[start : start + ROWS_AT_ONCE]
            columns = {}
            for name in names:
                values = np.asarray(part[name])
                if values.ndim != 1:
                    raise DataError(
                        f"{file}: column {name}", f"{values.shape[1:]} values a row", "Name a scalar column."
                    )
                columns[name] = pa.array(values.astype(values.dtype.newbyteorder("=")))
            yield pa.table(columns)
