"""Labels of PROVABGS: stellar mass, metallicity, age and star formation of DESI's bright galaxies (Hahn et al. 2023).

From the catalogue as DESI publishes it (``BGS_ANY_full.provabgs.sv3.v0.hdf5``: one table of rows, or one dataset a
column) or from Multimodal Universe's ``desi_provabgs``. Metallicity, age and star-formation rate are in the second; of
the first they follow only from its parameters through the ``provabgs`` package's emulator, which is not part of this
project.
"""

from __future__ import annotations

import logging
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa

from astroclip_dist.errors import DataError
from shards.sources.hdf5_file import open_hdf5

log = logging.getLogger(__name__)

# Column here, and its names in the published file: the first that is there counts.
_REQUIRED = {
    "log_mstar": ("PROVABGS_LOGMSTAR_BF", "LOG_MSTAR"),
    "mag_g": ("MAG_G",),
    "mag_r": ("MAG_R",),
    "mag_z": ("MAG_Z",),
}
_OPTIONAL = {
    "redshift": ("Z_HP",),
    "redshift_error": ("ZERR",),
    "z_mw": ("Z_MW",),
    "tage_mw": ("TAGE_MW",),
    "avg_sfr": ("AVG_SFR",),
    "mag_w1": ("MAG_W1",),
}
_PREFIX = "provabgs_"


def read_published(path: Path) -> pa.Table:
    """The published catalogue, with the columns of :func:`shards.sources.mmu_provabgs.read_provabgs_table` that it has.

    Raises:
        DataError: not such a file.
    """
    with open_hdf5(path) as file:
        rows = _table_of_rows(file)
        group = (
            file
            if rows is not None or "TARGETID" in file
            else next(
                (member for member in file.values() if isinstance(member, h5py.Group) and "TARGETID" in member), file
            )
        )
        there = set(rows.dtype.names) if rows is not None else set(group)

        def read(name: str) -> np.ndarray:
            data = rows.fields(name)[()] if rows is not None else group[name][()]
            # What the population synthesis computes may come as (rows, 1).
            return np.asarray(data).reshape(len(data), -1)

        columns: dict[str, np.ndarray] = {}
        for column, names in {"targetid": ("TARGETID",), **_REQUIRED, **_OPTIONAL}.items():
            name = next((name for name in names if name in there), None)
            if name is None:
                if column in _OPTIONAL:
                    continue
                raise DataError(
                    f"{path}: column {names[0]}", "absent", f"The file has {', '.join(sorted(there)[:40])}."
                )
            values = read(name)
            if values.shape[1] != 1 or values.dtype.kind not in ("iu" if column == "targetid" else "fiu"):
                raise DataError(f"{path}: column {name}", f"{values.dtype} {values.shape}", "It is a number a row.")
            columns[column] = values[:, 0].astype(np.int64 if column == "targetid" else np.float64)
    lengths = {column: len(values) for column, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(str(path), f"columns of different lengths {lengths}", "Fetch the file again.")
    return pa.table(columns)


def provabgs_labels(table: pa.Table, name: str) -> pa.Table:
    """The labels of the galaxies that AstroCLIP selects: ``log_mstar`` > 0 and magnitudes g, r, z > 0.

    Args:
        table: ``targetid``, ``log_mstar``, ``mag_g``, ``mag_r``, ``mag_z``; ``z_mw``, ``tage_mw``, ``avg_sfr``,
            ``redshift`` and others where they are there.
        name: of the table, for messages.

    Returns:
        ``targetid`` and, with ``provabgs_`` before the name: ``log_mstar`` (log10 Msun), ``z_mw`` (mass fraction),
        ``tage_mw`` (Gyr), ``avg_sfr`` (Msun/yr), ``redshift``, ``mag_*`` (AB) as they are;
        ``log_ssfr`` = log10(avg_sfr) - log_mstar (log10 1/yr);
        ``upstream_ssfr`` = ln(avg_sfr) - ln(z_mw): not a specific star-formation rate, but what AstroCLIP's published
        code trains and scores under that name (its ``property_utils/cross_match.py`` divides by the metallicity).

    Raises:
        DataError: a column that is needed is missing, or nothing is selected.
    """
    needed = ("targetid", *_REQUIRED)
    missing = [column for column in needed if column not in table.column_names]
    if missing:
        raise DataError(f"{name}: column {', '.join(missing)}", "absent", f"It has {', '.join(table.column_names)}.")
    numbers = {
        column: table.column(column).cast(pa.float64()).to_numpy(zero_copy_only=False)
        for column in table.column_names
        if column not in ("targetid", "ra", "dec")
    }
    with np.errstate(invalid="ignore"):
        selected = np.logical_and.reduce([numbers[column] > 0 for column in _REQUIRED])
    if not selected.any():
        raise DataError(name, f"no galaxy of {len(table)} has log_mstar > 0 and magnitudes > 0", "Check the file.")
    if "avg_sfr" in numbers:
        rate = _positive(numbers["avg_sfr"])
        numbers["log_ssfr"] = np.log10(rate) - numbers["log_mstar"]
        if "z_mw" in numbers:
            numbers["upstream_ssfr"] = np.log(rate) - np.log(_positive(numbers["z_mw"]))
    absent = [column for column in ("z_mw", "tage_mw", "avg_sfr") if column not in numbers]
    if absent:
        log.warning("%s has no %s: no labels of them, nor of what follows from them", name, ", ".join(absent))
    labels = {_PREFIX + column: pa.array(values, from_pandas=True) for column, values in numbers.items()}
    return pa.table({"targetid": table.column("targetid"), **labels}).filter(pa.array(selected))


def _positive(values: np.ndarray) -> np.ndarray:
    """NaN where a logarithm does not exist."""
    return np.where(values > 0, values, np.nan)


def _table_of_rows(file: h5py.File) -> h5py.Dataset | None:
    """The dataset that astropy writes a whole table into, if this is such a file."""
    return next(
        (
            member
            for member in file.values()
            if isinstance(member, h5py.Dataset) and "TARGETID" in (member.dtype.names or ())
        ),
        None,
    )
