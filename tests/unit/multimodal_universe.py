"""Write small files in the layouts that Multimodal Universe publishes: HDF5, and Parquet in its three dialects."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FOUR_BANDS = ("DES-G", "DES-R", "DES-I", "DES-Z")
THREE_BANDS = ("DES-G", "DES-R", "DES-Z")
DIALECTS = ("struct of lists", "list of structs", "datasets, Sequence", "datasets, List")


def image_columns(galaxies: int, bands: tuple[str, ...], size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """The columns of an HDF5 file of images: random fluxes, no two pixels alike; all clean, all observed."""
    rng = np.random.default_rng(seed)
    shape = (galaxies, len(bands), size, size)
    return {
        "image_array": rng.normal(size=shape).astype(np.float32),
        "image_ivar": rng.uniform(50, 100, shape).astype(np.float32),
        "image_mask": np.ones((galaxies, size, size), bool),
        # Lower case, five bytes of UTF-8, as the published build writes them.
        "image_band": np.array([[band.lower().encode() for band in bands]] * galaxies, h5py.string_dtype("utf-8", 5)),
        "image_psf_fwhm": rng.uniform(1, 2, shape[:2]),
        "image_scale": np.full(shape[:2], 0.262, np.float32),
        "ra": rng.uniform(0, 360, galaxies),
        "dec": rng.uniform(-60, 30, galaxies),
    }


def legacysurvey(galaxies: int, seed: int = 0, size: int = 160) -> dict[str, np.ndarray]:
    """``legacysurvey``, dr10_south_21: sweep columns beside the images."""
    text = h5py.string_dtype("utf-8", 16)
    return image_columns(galaxies, FOUR_BANDS, size, seed) | {
        "object_id": np.array([f"0421p022-{7410 + seed * 100 + row}".encode() for row in range(galaxies)], text),
        "EBV": np.linspace(0.01, 0.05, galaxies, dtype=np.float32),
        **{f"FLUX_{band}": np.arange(1, galaxies + 1, dtype=np.float32) for band in ("G", "R", "I", "Z", "W1", "W2")},
        "RELEASE": np.full(galaxies, 10000, ">i2"),
        "BRICKID": np.full(galaxies, 342510, ">i4"),
        "OBJID": np.arange(7410, 7410 + galaxies, dtype=">i4"),
        "TYPE": np.array([b"SER"] * galaxies, "S3"),
    }


def ssl_legacysurvey(galaxies: int, size: int = 152) -> dict[str, np.ndarray]:
    """``ssl_legacysurvey``: no mask nor inverse variance; object_id is a row number."""
    columns = image_columns(galaxies, THREE_BANDS, size)
    del columns["image_ivar"], columns["image_mask"]
    return columns | {
        "object_id": np.arange(5, 5 + galaxies),
        "release": np.full(galaxies, 9010, np.int32),
        "brickid": np.full(galaxies, 500001, np.int32),
        "objid": np.arange(31, 31 + galaxies, dtype=np.int32),
        "z_spec": np.where(np.arange(galaxies) % 2, 0.25, -99.0).astype(np.float32),
        "ebv": np.full(galaxies, 0.02, np.float32),
        **{f"psfdepth_{band}": np.full(galaxies, 900.0, np.float32) for band in "grz"},
    }


def desi(galaxies: int) -> dict[str, np.ndarray]:
    """``desi``: spectra on DESI's grid in float32, with the columns of the redshift catalogue."""
    rng = np.random.default_rng(1)
    shape = (galaxies, 7781)
    return {
        "object_id": np.arange(39627866878511337, 39627866878511337 + galaxies, dtype=">i8"),
        "ra": rng.uniform(0, 360, galaxies),
        "dec": rng.uniform(-30, 80, galaxies),
        "Z": np.linspace(0.1, 0.4, galaxies),
        "ZERR": np.full(galaxies, 1e-5),
        "ZWARN": np.array([0, 4, *[0] * galaxies][:galaxies], ">i8"),
        "SPECTYPE": np.array([b"GALAXY"] * galaxies, "S6"),
        "EBV": np.full(galaxies, 0.03, np.float32),
        "FLUX_R": np.full(galaxies, 12.5, np.float32),
        "spectrum_flux": rng.normal(5, 1, shape).astype(np.float32),
        "spectrum_ivar": rng.uniform(1, 2, shape).astype(np.float32),
        "spectrum_mask": np.zeros(shape, bool),
        "spectrum_lambda": np.tile(np.linspace(3600, 9824, 7781, dtype=np.float32), (galaxies, 1)),
        "spectrum_lsf_sigma": np.full(shape, 1.2, np.float32),
    }


def gz10(galaxies: int) -> dict[str, np.ndarray]:
    """``gz10``: red, green and blue pictures."""
    rng = np.random.default_rng(2)
    return {
        "object_id": np.arange(17, 17 + galaxies),
        "images": rng.integers(5, 250, (galaxies, 256, 256, 3), dtype=np.uint8),
        "ans": np.arange(galaxies, dtype=np.uint8) % 10,
        "pxscale": np.full(galaxies, 0.262),
        "ra": rng.uniform(0, 360, galaxies),
        "dec": rng.uniform(-30, 80, galaxies),
        "redshift": np.array([0.05, np.nan, *[0.1] * galaxies][:galaxies]),
    }


def write_hdf5(folder: Path, columns: dict[str, np.ndarray], healpix: int = 299, suffix: str = ".hdf5") -> Path:
    """``healpix=N/001-of-001.hdf5``, compressed in chunks as published."""
    path = folder / f"healpix={healpix}" / f"001-of-001{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            file.create_dataset(name, data=column, compression="gzip", compression_opts=1, chunks=True)
    return path


def write_parquet(path: Path, columns: dict[str, np.ndarray], dialect: str, row_group_size: int = 2) -> Path:
    """The same galaxies as Parquet, nested."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [_nested_row(columns, row, dialect) for row in range(len(columns["object_id"]))]
    if dialect.startswith("datasets"):
        data = datasets.Dataset.from_list(rows, features=_features(rows[0], columns, dialect))
        data.to_parquet(path, batch_size=row_group_size)
    else:
        table = pa.Table.from_pylist([_lists(row) for row in rows])
        pq.write_table(table, path, row_group_size=row_group_size)
    return path


def _nested_row(columns: dict[str, np.ndarray], row: int, dialect: str) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, column in columns.items():
        value = column[row]
        if name.startswith("spectrum_"):
            record.setdefault("spectrum", {})[name.removeprefix("spectrum_")] = value
        elif name == "images":
            buffer = io.BytesIO()
            Image.fromarray(value).save(buffer, "PNG")
            record["rgb_image"] = {"bytes": buffer.getvalue(), "path": None}
        elif name in ("ans", "pxscale"):
            record[{"ans": "gz10_label", "pxscale": "rgb_pixel_scale"}[name]] = value.item()
        elif name == "object_id":
            # What str() makes of the bytes of HDF5, as in the published copies.
            record[name] = str(bytes(value)) if isinstance(value, bytes) else str(value)
        elif not name.startswith("image_"):
            record[name] = value.decode() if isinstance(value, bytes) else value.item()
    if "image_array" in columns:
        bands = [band.decode().upper() for band in columns["image_band"][row]]
        image: dict[str, Any] = {"band": bands, "flux": columns["image_array"][row]}
        if "image_mask" in columns:
            image["mask"] = np.stack([columns["image_mask"][row]] * len(bands))
            image["ivar"] = columns["image_ivar"][row]
        image["psf_fwhm"] = columns["image_psf_fwhm"][row].astype(np.float32)
        image["scale"] = columns["image_scale"][row]
        of_structs = dialect in ("list of structs", "datasets, List")
        record["image"] = (
            [{name: values[band] for name, values in image.items()} for band in range(len(bands))]
            if of_structs
            else image
        )
    return record


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lists(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_lists(member) for member in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _features(row: dict[str, Any], columns: dict[str, np.ndarray], dialect: str) -> datasets.Features:
    features: dict[str, Any] = {}
    for name, value in row.items():
        if name == "image":
            size = columns["image_array"].shape[-1]
            members: dict[str, Any] = {
                "band": datasets.Value("string"),
                "flux": datasets.Array2D((size, size), "float32"),
            }
            if "image_mask" in columns:
                members["mask"] = datasets.Array2D((size, size), "bool")
                members["ivar"] = datasets.Array2D((size, size), "float32")
            members |= {"psf_fwhm": datasets.Value("float32"), "scale": datasets.Value("float32")}
            features[name] = datasets.List(members) if dialect.endswith("List") else datasets.Sequence(members)
        elif name == "spectrum":
            features[name] = datasets.Sequence(
                {member: datasets.Value("bool" if member == "mask" else "float32") for member in value}, length=7781
            )
        elif name == "rgb_image":
            features[name] = datasets.Image()
        else:
            kind = {str: "string", int: "int64", float: "float32", bool: "bool"}[type(value)]
            features[name] = datasets.Value(kind)
    return datasets.Features(features)
