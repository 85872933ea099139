"""Redshifts of DESI targets from redrock tables (HDU REDSHIFTS; in files of 2020 and before, ZBEST)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from astroclip_dist.errors import DataError
from shards.sources.fits_file import hdu_data, open_fits, row_scalars, table_column

_COLUMNS = {
    "redshift": "Z",
    "redshift_error": "ZERR",
    "zwarn": "ZWARN",
    "spectype": "SPECTYPE",
    "deltachi2": "DELTACHI2",
}


def read_redshifts(paths: list[Path], extra: dict[str, str] | None = None) -> dict[int, dict[str, Any]]:
    """Metadata of each TARGETID: redshift, its error, zwarn (0 = no warning), spectype, deltachi2.

    Args:
        extra: further metadata and the columns they come from.

    Raises:
        DataError: a table that cannot be read, or a target that has a redshift already.
    """
    redshifts: dict[int, dict[str, Any]] = {}
    for path in paths:
        with open_fits(path) as hdus:
            name = "ZBEST" if "ZBEST" in hdus else "REDSHIFTS"
            table = hdu_data(hdus, path, name)
        for row, target in enumerate(table_column(table, path, name, "TARGETID").tolist()):
            if target in redshifts:
                raise DataError(f"{path} target {target}", "has a redshift already", "Give each table once.")
            redshifts[target] = row_scalars(table, path, name, {**_COLUMNS, **(extra or {})}, row)
    return redshifts
