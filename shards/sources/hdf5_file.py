"""Open survey HDF5 files so that a damaged or wrong one gives a message with its name and dataset; read some rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from astroclip_dist.errors import DataError

# What h5py raises at damage inside a file, and where a chunk or a filter of the data cannot be read.
_DAMAGED = (OSError, RuntimeError, ValueError, KeyError, TypeError)
# Rows are read in blocks of at most this size (or of one chunk, where that is larger).
_BLOCK_BYTES = 64 << 20
# Reading on over unwanted rows costs less than another read, up to here.
_GAP_BYTES = 1 << 20


def open_hdf5(path: Path) -> h5py.File:
    """An HDF5 file for reading; use in a ``with`` statement.

    Raises:
        DataError: no such file, no HDF5, or one that ends too early.
    """
    try:
        return h5py.File(path, "r")
    except FileNotFoundError as error:
        raise DataError(str(path), "no such file", "Check the path.") from error
    except _DAMAGED as error:
        raise DataError(
            str(path), f"not a readable HDF5 file ({_reason(error)})", "Fetch it again: it is damaged or truncated."
        ) from error


def hdf5_dataset(group: h5py.Group, name: str, shape: tuple[int | None, ...], kinds: str) -> h5py.Dataset:
    """A dataset of a file or group, checked before anything is read from it.

    Args:
        shape: of the dataset, None where any length will do.
        kinds: numpy's letters of the dtypes that will do, such as "f", "iu"; "S" stands for text of any kind.

    Raises:
        DataError: missing, a group, another shape or dtype.
    """
    where = _where(group, name)
    found = _find(group, name)
    if found is None:
        raise DataError(where, "missing", "The file is of another format.")
    if len(found.shape or ()) != len(shape) or any(
        want is not None and want != length for want, length in zip(shape, found.shape, strict=True)
    ):
        wanted = ", ".join("n" if length is None else str(length) for length in shape)
        raise DataError(where, f"shape {found.shape}", f"It is ({wanted}) in this format.")
    if ("S" if _is_text(found.dtype) else found.dtype.kind) not in kinds:
        raise DataError(where, f"dtype {found.dtype}", "The file is of another format.")
    return found


def hdf5_shape(group: h5py.Group, name: str) -> tuple[int, ...] | None:
    """The shape of a dataset that a file may lack (None: it does).

    Raises:
        DataError: a group, or not readable.
    """
    found = _find(group, name)
    return None if found is None else found.shape or ()


def hdf5_groups(file: h5py.File) -> list[str]:
    """The names of a file's groups, "10" after "9".

    Raises:
        DataError: the file has none, or is not readable.
    """
    try:
        found = [name for name in file if isinstance(file[name], h5py.Group)]
    except _DAMAGED as error:
        raise DataError(file.filename, f"not readable ({_reason(error)})", "Fetch it again.") from error
    if not found:
        raise DataError(file.filename, "no groups", "The file is of another format.")
    return sorted(found, key=lambda name: (len(name), name))


def row_blocks(dataset: h5py.Dataset, rows: Sequence[int]) -> Iterator[np.ndarray]:
    """Increasing rows, cut into blocks that fit into memory and split no chunk: a chunk is decompressed once.

    Args:
        dataset: the one with the largest rows.
    """
    wanted = np.asarray(rows, dtype=np.int64)
    chunk = dataset.chunks[0] if dataset.chunks else 1
    block = max(_BLOCK_BYTES // max(_row_bytes(dataset) * chunk, 1), 1) * chunk
    yield from (part for part in np.split(wanted, np.flatnonzero(np.diff(wanted // block)) + 1) if len(part))


def read_rows(dataset: h5py.Dataset, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """Some rows of a dataset, (len(rows), ...) in native byte order, read in as few stretches as is worth it.

    Args:
        rows: increasing.

    Raises:
        DataError: a row beyond the end, or data that cannot be read.
    """
    wanted = np.asarray(rows, dtype=np.int64)
    where = _where(dataset)
    if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < len(dataset):
        raise DataError(where, f"{len(dataset)} rows, not {wanted[-1] + 1}", "The file changed since it was planned.")
    gap = max(_GAP_BYTES // max(_row_bytes(dataset), 1), dataset.chunks[0] if dataset.chunks else 1)
    native = dataset.dtype.newbyteorder("=")
    found = np.empty((len(wanted), *dataset.shape[1:]), native)
    try:
        end = 0
        for stretch in np.split(wanted, np.flatnonzero(np.diff(wanted) > gap) + 1):
            if not len(stretch):
                continue
            start, end = end, end + len(stretch)
            first, last = int(stretch[0]), int(stretch[-1])
            if len(stretch) == last - first + 1:
                dataset.read_direct(found, np.s_[first : last + 1], np.s_[start:end])
            else:
                found[start:end] = dataset[first : last + 1][stretch - first]
    except _DAMAGED as error:
        raise DataError(where, f"not readable ({_reason(error)})", "Fetch the file again.") from error
    return found


def plain_values(columns: Mapping[str, np.ndarray], row: int) -> dict[str, int | float | str | bool]:
    """One row of some columns as plain numbers and text; NaN and empty text are absent.

    Args:
        columns: each (rows,), as :func:`read_rows` gives them.
    """
    values = {name: _plain(column[row]) for name, column in columns.items()}
    return {
        name: value
        for name, value in values.items()
        if value != "" and not (isinstance(value, float) and math.isnan(value))
    }


def _find(group: h5py.Group, name: str) -> h5py.Dataset | None:
    where = _where(group, name)
    try:
        # Not group.get, which takes a damaged link for a missing one.
        found = group[name] if name in group else None  # noqa: SIM401
        if isinstance(found, h5py.Dataset):
            # Decoded from the file when first asked for: damage shows here.
            _ = found.dtype, found.shape, found.chunks
    except _DAMAGED as error:
        raise DataError(where, f"not readable ({_reason(error)})", "Fetch the file again.") from error
    if found is not None and not isinstance(found, h5py.Dataset):
        raise DataError(where, "no dataset but a group", "The file is of another format.")
    return found


def _plain(value: np.generic | bytes | str) -> int | float | str | bool:
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, bytes):
        plain = plain.decode(errors="replace")
    # Text of fixed length may be padded with blanks.
    return plain.strip() if isinstance(plain, str) else plain


def _is_text(dtype: np.dtype) -> bool:
    return h5py.check_string_dtype(dtype) is not None


def _row_bytes(dataset: h5py.Dataset) -> int:
    return math.prod(dataset.shape[1:]) * dataset.dtype.itemsize


def _where(group: h5py.Group | h5py.Dataset, name: str = "") -> str:
    full = f"{(group.name or '').rstrip('/')}/{name}" if name else group.name or ""
    return f"{group.file.filename} dataset {full.lstrip('/')}"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
