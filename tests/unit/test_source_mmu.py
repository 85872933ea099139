"""Multimodal Universe's data sets, in HDF5 and in the dialects of Parquet: whole, damaged, and of other surveys."""

from __future__ import annotations

import argparse
import math
import pickle
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from astroclip_dist.data.preprocessing.rgb import from_rgb
from astroclip_dist.errors import DataError
from shards.building.build import build
from shards.grids.spectra_grid import wavelengths
from shards.sample import Sample, check_sample
from shards.source import SOURCES, Source, all_samples, source_class
from shards.sources.mmu_desi import MmuDesi
from shards.sources.mmu_gz10 import MmuGz10
from shards.sources.mmu_images import MmuLegacySurvey, MmuSslLegacySurvey
from shards.sources.mmu_source import MmuSource
from tests.unit import multimodal_universe as mmu

GRZ = [0, 1, 3]


def read_all(source: Source) -> list[Sample]:
    samples = list(all_samples(source))
    for sample in samples:
        check_sample(sample, source.image, source.spectrum)
    return samples


def write(folder: Path, columns: dict[str, np.ndarray], form: str) -> Path:
    if form == "hdf5":
        return mmu.write_hdf5(folder, columns)
    return mmu.write_parquet(folder / "train-00000-of-00001.parquet", columns, form)


def one_result(source: Source, row: int = 0) -> Sample | DataError:
    (result,) = source.read(0, [row])
    return result


FORMS = ["hdf5", *mmu.DIALECTS]


@pytest.mark.parametrize("form", FORMS)
def test_legacysurvey_gives_the_middle_of_g_r_z(tmp_path: Path, form: str) -> None:
    columns = mmu.legacysurvey(3)
    columns["image_mask"][1, 4:42] = False  # a quarter of the middle 152 rows
    columns["image_mask"][2, :4] = False  # outside it
    columns["image_ivar"][1, 3, 4:42] = 0
    source = MmuLegacySurvey([write(tmp_path, columns, form).parent])
    samples = read_all(source)
    assert [sample.key for sample in samples] == ["0421p022-7410", "0421p022-7411", "0421p022-7412"]
    for row, sample in enumerate(samples):
        np.testing.assert_array_equal(sample.image, columns["image_array"][row, GRZ, 4:156, 4:156])
        assert sample.metadata["psf_fwhm_z"] == pytest.approx(columns["image_psf_fwhm"][row, 3], rel=1e-6)
        assert sample.metadata["ra"] == pytest.approx(columns["ra"][row], rel=1e-6)
        assert sample.metadata["flux_i"] == row + 1
    assert [sample.metadata["image_masked_fraction"] for sample in samples] == pytest.approx([0, 0.25, 0])
    assert [sample.metadata["image_no_data_fraction"] for sample in samples] == pytest.approx([0, 0.25 / 3, 0])
    assert samples[0].metadata["morphtype"] == "SER"
    assert samples[0].metadata["brick_objid"] == 7410


def test_bands_are_found_by_name_and_other_surveys_refused(tmp_path: Path) -> None:
    columns = mmu.legacysurvey(3)
    # z before g; a galaxy whose g is another survey's.
    columns["image_band"][1] = np.array([b"des-z", b"des-r", b"des-i", b"des-g"])
    columns["image_band"][2, 0] = b"hsc-g"
    source = MmuLegacySurvey([mmu.write_hdf5(tmp_path, columns)])
    first, second, third = source.read(0, range(3))
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    np.testing.assert_array_equal(second.image, columns["image_array"][1, [3, 1, 0], 4:156, 4:156])
    assert isinstance(third, DataError)
    assert "0421p022-7412: bands: hsc-g, des-r, des-i, des-z. No g" in str(third)


@pytest.mark.parametrize(
    ("column", "place", "value", "message"),
    [
        ("image_array", (1, 3, 16, 16), np.nan, "1 pixels not finite"),
        ("image_array", (1, 1), 0, "no data in r"),
        ("image_ivar", (1, 3), 0, "band z: inverse variance 0 everywhere"),
        ("image_scale", (1, 0), 0.168, "scale: .* arcsec"),
    ],
)
@pytest.mark.parametrize("form", ["hdf5", "struct of lists"])
def test_a_bad_galaxy_comes_in_its_place(
    tmp_path: Path, form: str, column: str, place: tuple[int, ...], value: float, message: str
) -> None:
    columns = mmu.legacysurvey(3, size=32)
    columns[column][place] = value
    source = MmuLegacySurvey([write(tmp_path, columns, form)], size=24)
    results: list[Sample | DataError] = []
    for part in range(source.partitions):
        results += source.read(part, range(len(source.keys(part))))
    assert [isinstance(result, DataError) for result in results] == [False, True, False]
    with pytest.raises(DataError, match=f"0421p022-7411.*{message}"):
        list(all_samples(source))


def test_float16_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    columns = mmu.legacysurvey(2)
    columns["image_array"][1, 0, 80, 80] = 1e5
    source = MmuLegacySurvey([mmu.write_hdf5(tmp_path, columns)], size=96, dtype="float16")
    first, second = source.read(0, [0, 1])
    assert isinstance(first, Sample)
    assert first.image is not None
    assert (first.image.shape, first.image.dtype) == ((3, 96, 96), np.float16)
    assert isinstance(second, DataError)
    assert "too large for float16" in str(second)


def test_a_size_larger_than_the_cut_out_is_refused(tmp_path: Path) -> None:
    source = MmuLegacySurvey([mmu.write_hdf5(tmp_path, mmu.legacysurvey(1))], size=192)
    assert "choose a smaller size" in str(one_result(source))


def test_stein_images_have_the_survey_identifiers_as_keys(tmp_path: Path) -> None:
    columns = mmu.ssl_legacysurvey(3)
    samples = read_all(MmuSslLegacySurvey([mmu.write_hdf5(tmp_path, columns)]))
    assert [sample.key for sample in samples] == ["9010-500001-31", "9010-500001-32", "9010-500001-33"]
    np.testing.assert_array_equal(samples[2].image, columns["image_array"][2])
    assert [sample.metadata.get("redshift") for sample in samples] == [None, 0.25, None]
    assert "image_masked_fraction" not in samples[0].metadata


@pytest.mark.parametrize("form", mmu.DIALECTS)
def test_stein_images_without_identifiers_need_their_region(tmp_path: Path, form: str) -> None:
    columns = mmu.ssl_legacysurvey(3, size=32)
    for name in ("release", "brickid", "objid"):
        del columns[name]
    path = write(tmp_path, columns, form)
    with pytest.raises(DataError, match="--region north"):
        MmuSslLegacySurvey([path]).keys(0)
    samples = read_all(MmuSslLegacySurvey([path], size=32, region="north"))
    assert [sample.key for sample in samples] == ["stein-north-5", "stein-north-6", "stein-north-7"]
    np.testing.assert_array_equal(samples[1].image, columns["image_array"][1])


@pytest.mark.parametrize("form", FORMS)
def test_desi_spectra_stay_as_published_and_masked_bins_lose_their_weight(tmp_path: Path, form: str) -> None:
    columns = mmu.desi(3)
    columns["spectrum_mask"][0, 100:110] = True
    columns["spectrum_flux"][0, 105] = np.nan
    samples = read_all(MmuDesi([write(tmp_path, columns, form)]))
    assert [sample.key for sample in samples] == [str(39627866878511337 + row) for row in range(3)]
    for row, sample in enumerate(samples):
        good = ~columns["spectrum_mask"][row]
        assert sample.spectrum is not None
        assert sample.ivar is not None
        np.testing.assert_array_equal(sample.spectrum[good], columns["spectrum_flux"][row, good])
        np.testing.assert_array_equal(sample.ivar[good], columns["spectrum_ivar"][row, good])
        assert not sample.ivar[~good].any()
        assert not sample.spectrum[~good].any()
    assert samples[0].metadata["targetid"] == 39627866878511337
    assert samples[2].metadata["redshift"] == pytest.approx(0.4)
    assert [sample.metadata["zwarn"] for sample in samples] == [0, 4, 0]


def test_a_boolean_zwarn_is_not_taken_for_the_bits(tmp_path: Path) -> None:
    columns = mmu.desi(2) | {"ZWARN": np.array([True, False])}
    samples = read_all(MmuDesi([write(tmp_path, columns, "datasets, Sequence")]))
    assert [sample.metadata["zwarn_as_published"] for sample in samples] == [True, False]
    assert "zwarn" not in samples[0].metadata


def test_another_wavelength_grid_is_resampled(tmp_path: Path) -> None:
    columns = mmu.desi(1)
    wavelength = np.arange(3600.4, 9820, 1.6, dtype=np.float32)
    columns |= {
        "spectrum_lambda": wavelength[None],
        "spectrum_flux": (wavelength / 1000)[None],
        "spectrum_ivar": np.ones((1, len(wavelength)), np.float32),
        "spectrum_mask": np.zeros((1, len(wavelength)), bool),
    }
    (sample,) = read_all(MmuDesi([mmu.write_hdf5(tmp_path, columns)]))
    assert sample.spectrum is not None
    assert sample.ivar is not None
    inside = slice(10, 7760)
    grid = wavelengths(MmuDesi.spectrum)  # type: ignore[arg-type]
    np.testing.assert_allclose(sample.spectrum[inside], grid[inside] / 1000, atol=1e-3)
    assert sample.ivar.sum() == pytest.approx(len(wavelength), rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spectrum_lambda": np.linspace(3.55, 3.99, 7781, dtype=np.float32)[None]}, "check the unit"),
        ({"spectrum_lambda": np.full((1, 7781), 5000, np.float32)}, "not increasing"),
        ({"spectrum_lambda": np.linspace(3600, 9824, 7000, dtype=np.float32)[None]}, "as long as the wavelengths"),
        ({"spectrum_ivar": np.full((1, 7781), -1, np.float32)}, "7781 negative or NaN"),
        ({"spectrum_flux": np.full((1, 7781), np.inf, np.float32)}, "7781 values not finite"),
        ({"spectrum_mask": np.ones((1, 7781), bool)}, "every bin is masked"),
        ({"object_id": np.array([b"a galaxy"])}, "object_id: 'a galaxy'"),
    ],
)
def test_spectra_that_cannot_be_used(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    result = one_result(MmuDesi([mmu.write_hdf5(tmp_path, mmu.desi(1) | changes)]))
    assert isinstance(result, DataError)
    assert message in str(result)


@pytest.mark.parametrize("form", FORMS)
def test_gz10_pictures_become_approximate_fluxes(tmp_path: Path, form: str) -> None:
    columns = mmu.gz10(3)
    samples = read_all(MmuGz10([write(tmp_path, columns, form)]))
    assert [sample.key for sample in samples] == ["gz10-17", "gz10-18", "gz10-19"]
    assert [sample.metadata["gz10_label"] for sample in samples] == [0, 1, 2]
    assert [sample.metadata.get("redshift") for sample in samples] == pytest.approx([0.05, None, 0.1])
    # Rows from the south up, red, green, blue back to z, r, g: then g, r, z.
    upright = torch.from_numpy(columns["images"][0][::-1].copy()).permute(2, 0, 1).double() / 255
    assert samples[0].image is not None
    np.testing.assert_allclose(samples[0].image, from_rgb(upright)[:, 52:204, 52:204], rtol=1e-5, atol=1e-7)
    assert samples[0].metadata["image_stretch"] == "picture, legacy-viewer assumed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ans": np.array([10], np.uint8)}, "gz10_label: 10"),
        ({"pxscale": np.array([np.nan])}, "pixel scale: None"),
        ({"pxscale": np.array([0.1])}, "choose a smaller size"),
    ],
)
def test_pictures_that_cannot_be_used(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    assert message in str(one_result(MmuGz10([mmu.write_hdf5(tmp_path, mmu.gz10(1) | changes)])))


def test_a_picture_that_is_no_image_and_one_left_outside_the_file(tmp_path: Path) -> None:
    path = mmu.write_parquet(tmp_path / "x.parquet", mmu.gz10(2), "struct of lists")
    table = pq.read_table(path)
    pictures = pa.array([{"bytes": b"<html>", "path": None}, {"bytes": None, "path": "17.png"}])
    pq.write_table(table.set_column(table.schema.get_field_index("rgb_image"), "rgb_image", pictures), path)
    first, second = MmuGz10([path]).read(0, [0, 1])
    assert "not a readable image" in str(first)
    assert "not in the file" in str(second)


@pytest.mark.parametrize("form", FORMS)
def test_any_rows_of_any_partition_after_pickling(tmp_path: Path, form: str) -> None:
    columns = mmu.legacysurvey(5, size=32)
    write(tmp_path, columns, form)
    if form == "hdf5":
        mmu.write_hdf5(tmp_path, mmu.legacysurvey(2, seed=1, size=32), healpix=300)
    source = pickle.loads(pickle.dumps(MmuLegacySurvey([tmp_path], size=24)))  # noqa: S301
    assert source.partitions == (2 if form == "hdf5" else 3)
    whole = {sample.key: sample for sample in all_samples(source)}
    assert len(whole) == (7 if form == "hdf5" else 5)
    for partition in range(source.partitions):
        keys = source.keys(partition)
        for rows in ([], [len(keys) - 1], list(range(0, len(keys), 2))):
            samples = list(source.read(partition, rows))
            assert [sample.key for sample in samples] == [keys[row] for row in rows]
            for sample in samples:
                np.testing.assert_array_equal(sample.image, whole[sample.key].image)
                assert sample.metadata == whole[sample.key].metadata
    with pytest.raises(DataError, match="changed since it was planned"):
        list(source.read(0, [7]))


def test_memory_does_not_grow_with_a_row_group(tmp_path: Path) -> None:
    galaxies, bins = 500, 7781
    offsets = np.arange(galaxies + 1, dtype=np.int32) * bins
    noise = np.random.default_rng(3).uniform(1, 2, galaxies * bins).astype(np.float32)
    wavelength = np.tile(np.linspace(3600, 9824, bins, dtype=np.float32), galaxies)
    members = {"flux": noise, "ivar": noise, "lambda": wavelength, "mask": np.zeros(len(noise), bool)}
    lists = [pa.ListArray.from_arrays(offsets, pa.array(values)) for values in members.values()]
    spectra = pa.StructArray.from_arrays(lists, list(members))
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"object_id": list(map(str, range(galaxies))), "spectrum": spectra}), path)
    del lists, spectra
    source = MmuDesi([path])
    assert source.partitions == 1
    assert path.stat().st_size > 30e6
    before = pa.total_allocated_bytes()
    results = source.read(0, range(galaxies))
    assert isinstance(next(results), Sample)
    assert pa.total_allocated_bytes() - before < 15e6


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("form", ["hdf5", "struct of lists"])
def test_a_truncated_file_is_named(tmp_path: Path, form: str, part: float) -> None:
    path = write(tmp_path, mmu.desi(2), form)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(DataError, match=f"{path.name}.*not a readable"):
        MmuDesi([path]).keys(0)


def test_damage_inside_a_parquet_file_is_noticed(tmp_path: Path) -> None:
    path = mmu.write_parquet(tmp_path / "x.parquet", mmu.desi(2), "struct of lists")
    table = pq.read_table(path)
    pq.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
    whole = bytearray(path.read_bytes())
    middle = whole.find(np.float64(mmu.desi(2)["spectrum_flux"][0, 4000]).tobytes())
    assert middle > 0
    whole[middle] ^= 0x40
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"x.parquet: not a readable Parquet file"):
        list(MmuDesi([path]).read(0, [0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.__delitem__("spectrum_ivar"), "dataset spectrum_ivar: missing"),
        (lambda file: file.__delitem__("object_id"), "dataset object_id: missing"),
        (lambda file: file.__setitem__("Z", np.zeros(7)), r"columns of \[2, 7\] rows"),
    ],
)
def test_hdf5_of_another_format(tmp_path: Path, change: object, message: str) -> None:
    columns = mmu.desi(2)
    del columns["Z"]
    path = mmu.write_hdf5(tmp_path, columns)
    with h5py.File(path, "a") as file:
        change(file)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        list(MmuDesi([path]).read(0, [0]))


def test_parquet_of_another_format(tmp_path: Path) -> None:
    spectra = mmu.write_parquet(tmp_path / "spectra.parquet", mmu.desi(1), "struct of lists")
    with pytest.raises(DataError, match=r"spectra.parquet column image: missing"):
        list(MmuLegacySurvey([spectra]).read(0, [0]))
    flat = tmp_path / "flat.parquet"
    pq.write_table(pa.table({"object_id": ["1"], "spectrum": [3.0]}), flat)
    with pytest.raises(DataError, match=r"flat.parquet column spectrum: of type double. It is a struct"):
        one_result(MmuDesi([flat]))
    pq.write_table(pa.table({"object_id": ["1"], "spectrum": [{"flux": [1.0]}]}), flat)
    with pytest.raises(DataError, match=r"flat.parquet column spectrum.ivar: missing"):
        one_result(MmuDesi([flat]))
    ragged = tmp_path / "ragged.parquet"
    row = {"band": ["DES-G", "DES-R"], "flux": [[[1.0, 2.0]], [[1.0]]], "scale": [0.262, 0.262]}
    pq.write_table(pa.Table.from_pylist([{"object_id": "1", "image": row}, {"object_id": "2", "image": None}]), ragged)
    first, second = MmuSslLegacySurvey([ragged], region="south").read(0, [0, 1])
    assert "All must have one length" in str(first)
    assert "image.flux: null" in str(second)


def test_inputs_that_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no .hdf5, .h5 or .parquet in this folder"):
        MmuDesi([tmp_path])
    with pytest.raises(DataError, match="no such file"):
        MmuDesi([tmp_path / "absent.parquet"])
    with pytest.raises(DataError, match="neither"):
        MmuDesi([tmp_path / "galaxies.csv"])


def test_built_from_the_command_line(tmp_path: Path) -> None:
    mmu.write_hdf5(tmp_path / "in", mmu.legacysurvey(3))
    names = [name for name in SOURCES if name.startswith("mmu-")]
    assert len(names) == 4
    for name in names:
        assert issubclass(source_class(name), MmuSource)
        assert source_class(name).name == name
    parser = argparse.ArgumentParser()
    MmuLegacySurvey.add_arguments(parser)
    source = MmuLegacySurvey.from_arguments(parser.parse_args([str(tmp_path / "in"), "--size", "144"]))
    manifest = build(source, str(tmp_path / "set"), contact_sheet=False)
    assert sum(manifest.counts.values()) == 3
    assert manifest.image is not None
    assert manifest.image.size == 144
    assert manifest.source["first_file"] == "healpix=299/001-of-001.hdf5"
    assert math.isclose(sum(manifest.split_fractions.values()), 1)
