"""Open survey FITS files so that a damaged or wrong one gives a message with its name and HDU."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyError
from astropy.utils.exceptions import AstropyWarning

from astroclip_dist.errors import DataError

_DAMAGED = (OSError, TypeError, ValueError, IndexError, VerifyError, AstropyWarning)


def open_fits(path: Path) -> fits.HDUList:
    """A FITS file, never memory-mapped; use in a ``with`` statement.

    Raises:
        DataError: no such file, no FITS, or one that ends too early.
    """
    try:
        with warnings.catch_warnings():
            # Files that end too early are only a warning for astropy, and then short or missing HDUs.
            for message in (".*truncated", ".*Error validating header"):
                warnings.filterwarnings("error", message=message, category=AstropyWarning)
            return fits.open(path, memmap=False, lazy_load_hdus=False)
    except FileNotFoundError as error:
        raise DataError(str(path), "no such file", "Check the path.") from error
    except _DAMAGED as error:
        reason = " ".join(str(error).split())
        raise DataError(
            str(path), f"not a readable FITS file ({reason})", "Fetch it again: it is damaged or truncated."
        ) from error


def hdu_data(hdus: fits.HDUList, path: Path, name: str | int) -> np.ndarray:
    """The data of one HDU (for an image: native byte order).

    Raises:
        DataError: the file has no such HDU, or its data end too early.
    """
    try:
        data = hdus[name].data
    except KeyError as error:
        raise DataError(f"{path} HDU {name}", "missing", "The file is of another format.") from error
    except _DAMAGED as error:
        raise DataError(f"{path} HDU {name}", f"not readable ({error})", "Fetch it again.") from error
    if data is None:
        raise DataError(f"{path} HDU {name}", "no data", "The file is of another format.")
    return data if data.dtype.names else data.astype(data.dtype.newbyteorder("="))


def table_column(table: np.ndarray, path: Path, hdu: str, name: str) -> np.ndarray:
    """A column in native byte order.

    Raises:
        DataError: the table lacks it.
    """
    if name not in (table.dtype.names or ()):
        raise DataError(f"{path} HDU {hdu}", f"no column {name}", "The file is of another format.")
    column = np.asarray(table[name])
    return column.astype(column.dtype.newbyteorder("="))


def row_scalars(table: np.ndarray, path: Path, hdu: str, columns: dict[str, str], row: int) -> dict[str, Any]:
    """The named columns of one row as plain numbers and text; NaN and empty text are absent."""
    values = {field: table_column(table, path, hdu, column)[row].item() for field, column in columns.items()}
    return {
        field: value.strip() if isinstance(value, str) else value
        for field, value in values.items()
        if value != "" and not (isinstance(value, float) and math.isnan(value))
    }
