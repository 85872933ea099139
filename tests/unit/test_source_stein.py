"""Stein et al. HDF5: files in the published layout, with real cut-outs and catalogue rows, and damaged ones."""

from __future__ import annotations

import argparse
import csv
import logging
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from astroclip_dist.errors import DataError
from shards.sample import Sample, check_sample
from shards.source import all_samples, source_class
from shards.sources import hdf5_file
from shards.sources.legacy_fits import LegacyFits
from shards.sources.stein_hdf5 import SteinHdf5

BANDS = ("flux", "fiberflux", "fracin", "nobs", "psfdepth", "psfsize", "transmission")


def columns(galaxies: int, seed: int = 0) -> dict[str, Any]:
    """Every dataset of a published file, with the sweep catalogues' dtypes."""
    random = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "images": random.normal(0, 0.01, (galaxies, 3, 152, 152)).astype(np.float32),
        "inds": np.arange(galaxies),
        "release": np.full(galaxies, 9010, np.int16),
        "brickid": random.integers(1, 662174, galaxies).astype(np.int32),
        "objid": random.permutation(galaxies).astype(np.int32),
        "ra": random.uniform(0, 360, galaxies),
        "dec": random.uniform(-60, 32, galaxies),
        "ebv": random.uniform(0, 0.2, galaxies).astype(np.float32),
        "maskbits": np.zeros(galaxies, np.int16),
        "source_type": np.array([b"PSF", b"REX", b"DEV", b"EXP", b"SER"])[random.integers(0, 5, galaxies)],
        "z_spec": np.full(galaxies, -99, np.float32),
        "z_training": np.zeros(galaxies, bool),
    }
    values |= {name: random.uniform(1, 5, (galaxies, 3)).astype(np.float32) for name in BANDS}
    values["nobs"] = values["nobs"].astype(np.int16)
    values |= {
        f"z_phot_{moment}": random.uniform(0.1, 1, galaxies).astype(np.float32)
        for moment in ("mean", "median", "std", "l68", "u68", "l95", "u95")
    }
    return values


def write(path: Path, values: dict[str, Any], **storage: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            file.create_dataset(name, data=value, **(storage if name == "images" else {}))
    return path


def only(source: SteinHdf5, row: int = 0) -> Sample | DataError:
    (found,) = source.read(0, [row])
    return found


def image_of(sample: Sample) -> np.ndarray:
    assert sample.image is not None
    return sample.image


def test_the_published_layout(tmp_path: Path) -> None:
    values = columns(5)
    values["z_spec"][1], values["z_phot_mean"][2], values["ebv"][3] = 0.25, -99, np.nan
    values["images"][4, 0, 3, 100] = 17  # g, near the southern edge, west of the middle
    source = SteinHdf5([write(tmp_path / "a.h5", values), write(tmp_path / "b.h5", columns(2, seed=1))])
    assert source.partitions == 2
    samples = list(all_samples(source))
    assert [sample.key for sample in samples] == [*source.keys(0), *source.keys(1)]
    assert len({sample.key for sample in samples}) == 7
    for row, sample in enumerate(samples[:5]):
        check_sample(sample, source.image, None)
        assert sample.key == f"9010-{values['brickid'][row]}-{values['objid'][row]}"
        np.testing.assert_array_equal(sample.image, values["images"][row])
        assert sample.metadata["ra"] == values["ra"][row]
        assert sample.metadata["source_type"] == values["source_type"][row].decode()
        assert sample.metadata["inds"] == row
        for name in BANDS:
            for place, band in enumerate("grz"):
                assert sample.metadata[f"{name}_{band}"] == pytest.approx(values[name][row, place])
    assert image_of(samples[4])[0, 3, 100] == 17
    assert samples[1].metadata["z_spec"] == samples[1].metadata["redshift"] == pytest.approx(0.25)
    assert not {"z_spec", "redshift"} & samples[0].metadata.keys()
    assert samples[0].metadata["z_phot_mean"] == pytest.approx(values["z_phot_mean"][0])
    assert "z_phot_mean" not in samples[2].metadata
    assert "ebv" not in samples[3].metadata


def test_real_cutouts_with_rows_of_the_real_catalogue(real_data: Path, tmp_path: Path) -> None:
    cutouts = LegacyFits([real_data / "images" / "decals_float_grz" / f"example_{letter}.fits" for letter in "abc"])
    images = [image_of(sample) for sample in all_samples(cutouts)]
    with (real_data / "catalogues" / "legacysurvey_lens_candidates.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))[:3]
    values = columns(3) | {"images": np.stack(images)}
    for name in ("ra", "dec", "ebv", "z_spec", "z_phot_mean"):
        values[name] = np.array([float(row[name]) for row in rows], values[name].dtype)
    values["source_type"] = np.array([row["source_type"].encode() for row in rows])
    values["inds"] = np.array([int(row["inds"]) for row in rows])
    path = write(tmp_path / "real.h5", values)
    for dtype, tolerance in (("float32", 0.0), ("float16", 1e-3)):
        source = SteinHdf5([path], dtype)
        for sample, image, row in zip(all_samples(source), images, rows, strict=True):
            check_sample(sample, source.image, None)
            np.testing.assert_allclose(image_of(sample), image, rtol=tolerance, atol=tolerance * 1e-3)
            assert sample.metadata["source_type"] == "SER"
            assert sample.metadata["inds"] == int(row["inds"])
            assert ("redshift" in sample.metadata) == (row["z_spec"] != "-99.0")
            assert sample.metadata["z_phot_mean"] == pytest.approx(float(row["z_phot_mean"]))


@pytest.mark.parametrize(
    "storage",
    [{}, {"chunks": (1, 3, 152, 152)}, {"chunks": (4, 1, 76, 152), "compression": "gzip"}, {"compression": "lzf"}],
)
def test_any_rows_in_any_block(tmp_path: Path, storage: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_file, "_BLOCK_BYTES", 3 * 3 * 152 * 152 * 4)
    monkeypatch.setattr(hdf5_file, "_GAP_BYTES", 2 * 3 * 152 * 152 * 4)
    values = columns(11)
    values["images"] = values["images"].astype(">f4")
    source = SteinHdf5([write(tmp_path / "a.h5", values, **storage)])
    keys = source.keys(0)
    for rows in ([], [7], [0, 1, 2], [0, 10], [1, 2, 5, 9], range(11)):
        samples = list(source.read(0, rows))
        assert len(samples) == len(rows)
        for row, sample in zip(rows, samples, strict=True):
            assert isinstance(sample, Sample)
            assert sample.key == keys[row]
            np.testing.assert_array_equal(sample.image, values["images"][row])
    with pytest.raises(DataError, match="11 rows, not 12"):
        list(source.read(0, [0, 11]))


def test_no_chunk_is_read_twice_and_no_block_is_larger_than_memory(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "large.h5", "w") as file:
        # A million images that take no room: nothing is written into them.
        shape = (1_000_000, 3, 152, 152)
        for name, chunks, block in (("contiguous", None, 242), ("rows", (100, 3, 152, 152), 200)):
            images = file.create_dataset(name, shape, "f4", chunks=chunks)
            blocks = list(hdf5_file.row_blocks(images, range(0, 1_000_000, 2)))
            assert sum(map(len, blocks)) == 500_000
            assert all(part[-1] // block == part[0] // block for part in blocks)
            np.testing.assert_array_equal(np.concatenate(blocks), range(0, 1_000_000, 2))


def test_float16_overflow_spoils_that_galaxy_alone(tmp_path: Path) -> None:
    values = columns(3)
    values["images"][1, 2, 76, 76] = 70_000
    path = write(tmp_path / "a.h5", values)
    first, second, third = SteinHdf5([path], "float16").read(0, range(3))
    assert isinstance(first, Sample)
    assert isinstance(third, Sample)
    assert image_of(first).dtype == np.float16
    assert isinstance(second, DataError)
    assert "a.h5 row 1 (9010-" in str(second)
    assert "70000 nanomaggies, too large for float16" in str(second)
    assert isinstance(only(SteinHdf5([path]), 1), Sample)


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("images", (0, 1, 2, 3), np.nan, "1 pixels not finite"),
        ("images", (0, 2), 0, r"no data in z \(0 in every pixel\)"),
        ("ra", 0, np.nan, "ra: NaN"),
    ],
)
def test_a_bad_galaxy_comes_as_its_error(tmp_path: Path, name: str, place: Any, value: float, message: str) -> None:
    values = columns(2)
    values[name][place] = value
    source = SteinHdf5([write(tmp_path / "a.h5", values)])
    bad, good = source.read(0, range(2))
    assert isinstance(bad, DataError)
    assert isinstance(good, Sample)
    with pytest.raises(DataError, match=rf"a.h5 row 0 \({source.keys(0)[0]}\).*{message}"):
        raise bad


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("images", None, "dataset images: missing"),
        ("images", np.zeros((2, 152, 152, 3), np.float32), r"dataset images: shape \(2, 152, 152, 3\)"),
        ("images", np.zeros((2, 3, 152, 152), np.uint8), "dataset images: dtype uint8"),
        ("images", np.float32(1), r"dataset images: shape \(\)"),
        ("release", None, "dataset release: missing"),
        ("objid", np.zeros(3, np.int32), r"dataset objid: shape \(3,\). It is \(2\)"),
        ("brickid", np.zeros(2), "dataset brickid: dtype float64"),
        ("dec", None, "dataset dec: missing"),
        ("ebv", np.array([b"a", b"b"]), "dataset ebv: dtype"),
        ("source_type", np.zeros(2), "dataset source_type: dtype float64"),
        ("flux", np.zeros((2, 4)), r"dataset flux: shape \(2, 4\)"),
    ],
)
def test_wrong_datasets_are_named(tmp_path: Path, name: str, value: Any, message: str) -> None:
    values = columns(2)
    values[name] = value
    path = write(tmp_path / "a.h5", {field: value for field, value in values.items() if value is not None})
    with pytest.raises(DataError, match=rf"a.h5 {message}"):
        list(SteinHdf5([path]).read(0, range(2)))


def test_a_group_in_place_of_a_dataset(tmp_path: Path) -> None:
    values = columns(1)
    del values["images"]
    path = write(tmp_path / "a.h5", values)
    with h5py.File(path, "a") as file:
        file.create_group("images")
    with pytest.raises(DataError, match="dataset images: no dataset but a group"):
        SteinHdf5([path]).keys(0)


def test_a_column_of_another_length_is_left_out_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.h5", columns(2) | {"fracin": np.ones((1, 3)), "ebv": np.ones(5)})
    with caplog.at_level(logging.WARNING):
        sample = only(SteinHdf5([path]), 1)
    assert isinstance(sample, Sample)
    assert not {"ebv", "fracin_g"} & sample.metadata.keys()
    assert "flux_g" in sample.metadata
    assert [record.getMessage().split("dataset ")[1] for record in caplog.records] == [
        "ebv: 5 rows for 2 images; left out",
        "fracin: 1 rows for 2 images; left out",
    ]


def test_absent_optional_columns_are_absent(tmp_path: Path) -> None:
    names = ("images", "release", "brickid", "objid", "ra", "dec")
    path = write(tmp_path / "a.h5", {name: columns(1)[name] for name in names})
    sample = only(SteinHdf5([path]))
    assert isinstance(sample, Sample)
    assert sample.metadata.keys() == set(names[1:])


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, part: float) -> None:
    path = write(tmp_path / "a.h5", columns(2))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(DataError, match=r"a.h5: not a readable HDF5 file"):
        SteinHdf5([path]).keys(0)


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", columns(2), chunks=(1, 3, 152, 152), compression="gzip")
    with h5py.File(path) as file:
        chunk = file["images"].id.get_chunk_info(1)
    with path.open("r+b") as bytes_of_file:
        bytes_of_file.seek(chunk.byte_offset + 1000)
        bytes_of_file.write(bytes(1000))
    source = SteinHdf5([path])
    assert len(source.keys(0)) == 2
    with pytest.raises(DataError, match=r"a.h5 dataset images: not readable"):
        list(source.read(0, [1]))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.h5: no such file"):
        SteinHdf5([tmp_path / "gone.h5"]).keys(0)


def test_it_is_pickled_and_made_from_arguments(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", columns(2))
    parser = argparse.ArgumentParser()
    source_class("stein").add_arguments(parser)
    source = source_class("stein").from_arguments(parser.parse_args([str(path), str(path), "--dtype", "float16"]))
    assert source.describe() == {"files": 2, "first_file": "a.h5", "last_file": "a.h5"}
    assert source.image is not None
    assert source.image.dtype == "float16"
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert copy.keys(1) == source.keys(1)
    for here, there in zip(all_samples(source), all_samples(copy), strict=True):
        assert here.metadata == there.metadata
        np.testing.assert_array_equal(image_of(here), image_of(there))
