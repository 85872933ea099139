"""Multimodal Universe's ``desi_provabgs``: galaxy properties by DESI TARGETID, a table of labels without arrays.

Published by scripts/desi_provabgs of MultimodalUniverse from PROVABGS (Hahn et al. 2023, ApJ 945, 16).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from astroclip_dist.errors import DataError
from shards.sources.hdf5_file import hdf5_dataset, open_hdf5, read_rows
from shards.sources.mmu_file import Part, list_parts, read_identifiers
from shards.sources.parquet_file import ParquetGroup

# Column of the table, and the names that it has in the files.
_COLUMNS = {
    "ra": ("ra",),
    "dec": ("dec",),
    "redshift": ("Z_HP",),
    "redshift_error": ("ZERR",),
    "log_mstar": ("LOG_MSTAR", "PROVABGS_LOGMSTAR_BF"),
    "z_mw": ("Z_MW",),
    "tage_mw": ("TAGE_MW",),
    "avg_sfr": ("AVG_SFR",),
    "mag_g": ("MAG_G",),
    "mag_r": ("MAG_R",),
    "mag_z": ("MAG_Z",),
    "mag_w1": ("MAG_W1",),
}


def read_provabgs_table(files: Sequence[Path]) -> pa.Table:
    """The labels of all galaxies in files, or in folders of files, in HDF5 or Parquet.

    Returns:
        ``targetid`` int64; ``ra``, ``dec`` (deg), ``redshift``, ``redshift_error``, ``log_mstar`` (log10 of the
        best-fit stellar mass in Msun), ``z_mw`` (mass-weighted metallicity, a mass fraction, not its logarithm),
        ``tage_mw`` (mass-weighted age, Gyr), ``avg_sfr`` (Msun/yr, not its logarithm), ``mag_g``, ``mag_r``, ``mag_z``,
        ``mag_w1`` (AB), all float64, with null where the file has NaN or an infinite value.

    Raises:
        DataError: a file cannot be read, lacks a column, or a TARGETID that comes twice.
    """
    tables = [_read_part(part) for part in list_parts(files)]
    table = pa.concat_tables(tables)
    targets, counts = np.unique(table.column("targetid").to_numpy(), return_counts=True)
    if (counts > 1).any():
        raise DataError(
            f"target {targets[counts > 1][0]}",
            f"{np.count_nonzero(counts > 1)} targets come twice",
            "Give each file once, in one of the two forms.",
        )
    return table


def _read_part(part: Part) -> pa.Table:
    identifiers = read_identifiers(part, ["object_id"])["object_id"]
    if not all(identifier.isdecimal() for identifier in identifiers):
        raise DataError(f"{part} column object_id", "not all integers", "It is the TARGETID in this data set.")
    columns = {"targetid": pa.array([int(identifier) for identifier in identifiers], pa.int64())}
    for name, values in _read_numbers(part).items():
        columns[name] = pa.array(values, pa.float64(), mask=~np.isfinite(values))
    return pa.table(columns)


def _read_numbers(part: Part) -> dict[str, np.ndarray]:
    """Each (rows,) float64."""
    if part.row_group is not None:
        group = ParquetGroup(part.path, part.row_group)
        return {
            name: np.array(group.column(_present(names, group.columns)), dtype=np.float64)
            for name, names in _COLUMNS.items()
        }
    numbers = {}
    with open_hdf5(part.path) as file:
        for name, names in _COLUMNS.items():
            column = _present(names, set(file))
            # What the population synthesis computes comes as (rows, 1).
            second = () if column not in file or len(file[column].shape) == 1 else (1,)
            data = hdf5_dataset(file, column, (None, *second), "fiu")
            numbers[name] = read_rows(data, range(len(data))).reshape(-1).astype(np.float64)
    return numbers


def _present(names: Sequence[str], columns: set[str]) -> str:
    return next((name for name in names if name in columns), names[0])
