"""The labels of Multimodal Universe's desi_provabgs, in HDF5 and in Parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astroclip_dist.errors import DataError
from shards.sources.mmu_provabgs import read_provabgs_table
from tests.unit.multimodal_universe import write_hdf5


def provabgs(galaxies: int, first: int = 39627866878511337) -> dict[str, np.ndarray]:
    """The columns of an HDF5 file: what the population synthesis computed comes as (rows, 1)."""
    rng = np.random.default_rng(first % 1000)
    targets = np.arange(first, first + galaxies)
    plain = ("Z_HP", "ZERR", "PROVABGS_LOGMSTAR_BF", "MAG_G", "MAG_R", "MAG_Z", "MAG_W1", "ra", "dec")
    return {
        "object_id": targets,
        "TARGETID": targets,
        **{name: rng.uniform(1, 20, galaxies) for name in plain},
        **{name: rng.uniform(0, 1, (galaxies, 1)) for name in ("Z_MW", "TAGE_MW", "AVG_SFR")},
        "PROVABGS_THETA_BF": rng.normal(size=(galaxies, 13)),
        "PROVABGS_MCMC": rng.normal(size=(galaxies, 100, 13)).astype(np.float32),
    }


def as_parquet(path: Path, columns: dict[str, np.ndarray]) -> Path:
    """The same as Parquet: identifiers as text, numbers in float32, the mass under another name."""
    names = {"PROVABGS_LOGMSTAR_BF": "LOG_MSTAR"}
    table = {
        names.get(name, name): column.reshape(-1).astype(np.float32)
        for name, column in columns.items()
        if column.size == len(column) and name not in ("object_id", "TARGETID")
    }
    pq.write_table(pa.table({"object_id": [str(target) for target in columns["object_id"]], **table}), path)
    return path


def test_the_table_of_several_files(tmp_path: Path) -> None:
    one, two = provabgs(3), provabgs(2, first=39627866878600000)
    one["AVG_SFR"][1] = np.nan
    write_hdf5(tmp_path / "datafiles", one, 1, ".h5")
    write_hdf5(tmp_path / "datafiles", two, 2, ".h5")
    table = read_provabgs_table([tmp_path / "datafiles"])
    assert table.schema.field("targetid").type == pa.int64()
    assert table.column("targetid").to_pylist() == [*one["object_id"], *two["object_id"]]
    np.testing.assert_array_equal(table.column("log_mstar")[:3], one["PROVABGS_LOGMSTAR_BF"])
    np.testing.assert_array_equal(table.column("z_mw")[3:], two["Z_MW"][:, 0])
    assert table.column("avg_sfr").to_pylist()[:3] == [one["AVG_SFR"][0, 0], None, one["AVG_SFR"][2, 0]]
    assert set(table.column_names) == {
        *("targetid", "ra", "dec", "redshift", "redshift_error", "log_mstar", "z_mw", "tage_mw", "avg_sfr"),
        *("mag_g", "mag_r", "mag_z", "mag_w1"),
    }


def test_parquet_says_the_same(tmp_path: Path) -> None:
    columns = provabgs(3)
    of_hdf5 = read_provabgs_table([write_hdf5(tmp_path, columns)])
    of_parquet = read_provabgs_table([as_parquet(tmp_path / "x.parquet", columns)])
    assert of_parquet.schema == of_hdf5.schema
    assert of_parquet.column("targetid") == of_hdf5.column("targetid")
    for name in of_hdf5.column_names:
        np.testing.assert_allclose(of_parquet.column(name), of_hdf5.column(name), rtol=1e-6)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    columns = provabgs(2)
    path = write_hdf5(tmp_path, columns)
    with pytest.raises(DataError, match=r"target 39627866878511337: 2 targets come twice"):
        read_provabgs_table([path, as_parquet(tmp_path / "x.parquet", columns)])
    without = {name: column for name, column in columns.items() if name != "Z_MW"}
    with pytest.raises(DataError, match="dataset Z_MW: missing"):
        read_provabgs_table([write_hdf5(tmp_path, without, 3)])
    with pytest.raises(DataError, match="column LOG_MSTAR: missing"):
        read_provabgs_table([as_parquet(tmp_path / "y.parquet", without | {"PROVABGS_LOGMSTAR_BF": np.zeros((2, 2))})])
    text = columns | {"object_id": np.array([b"a", b"b"])}
    with pytest.raises(DataError, match="object_id: not all integers"):
        read_provabgs_table([write_hdf5(tmp_path, text, 4)])
