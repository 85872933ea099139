"""AstroCLIP's pairs: the HDF5 file and its exports by ``datasets``, in the published layouts, and damaged ones."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import DataError
from shards.sample import Sample, check_sample
from shards.source import Source, all_samples, source_class
from shards.sources.arrow_file import find_arrow_files
from shards.sources.astroclip_arrow import AstroclipArrow
from shards.sources.astroclip_hdf5 import AstroclipHdf5
from shards.sources.astroclip_pairs import PairFormat
from shards.sources.legacy_fits import LegacyFits

PAIRS = PairFormat(ImageLayout(), SpectrumLayout())
TARGETS = 39627700000000000
FEATURES = datasets.Features(
    {
        "image": datasets.Array3D(shape=(152, 152, 3), dtype="float32"),
        "spectrum": datasets.Array2D(shape=(7781, 1), dtype="float32"),
        "redshift": datasets.Value("float32"),
        "targetid": datasets.Value("int64"),
    }
)


def galaxy(number: int) -> np.ndarray:
    """(3, 152, 152): g, r, z as the survey has them, lopsided: a star in r in row 10 from the south, column 120."""
    image = np.random.default_rng(number).normal(0, 0.01, (3, 152, 152)).astype(np.float32)
    image[1, 10, 120] = 100 + number
    return image


def spectrum(number: int) -> np.ndarray:
    return (1 + number + np.sin(np.arange(7781) / 100)).astype(np.float32)


def image_of(sample: Sample | DataError) -> np.ndarray:
    assert isinstance(sample, Sample)
    assert sample.image is not None
    return sample.image


def check_pair(sample: Sample, number: int) -> None:
    check_sample(sample, PAIRS.image, PAIRS.spectrum)
    assert sample.key == str(TARGETS + number)
    assert sample.metadata["targetid"] == TARGETS + number
    assert sample.metadata["redshift"] == pytest.approx(0.01 * number)
    np.testing.assert_array_equal(image_of(sample), galaxy(number))
    assert image_of(sample)[1, 10, 120] == 100 + number
    assert sample.spectrum is not None
    np.testing.assert_array_equal(sample.spectrum, spectrum(number))
    assert sample.ivar is None


def write_hdf5(path: Path, groups: list[range], **replaced: Any) -> Path:
    """As ``export_data.py`` writes it: lists of transposed images, columns of spectra, Python numbers."""
    with h5py.File(path, "w") as file:
        for name, numbers in enumerate(groups):
            group = file.create_group(str(name))
            columns = {
                "images": [galaxy(number).T for number in numbers],
                "spectra": [spectrum(number).reshape(-1, 1) for number in numbers],
                "redshifts": [0.01 * number for number in numbers],
                "targetids": [TARGETS + number for number in numbers],
            }
            for column, value in (columns | replaced).items():
                if value is not None:
                    group.create_dataset(column, data=value)
    return path


def examples(numbers: range) -> Iterator[dict[str, Any]]:
    for number in numbers:
        yield {
            "image": galaxy(number).T,
            "spectrum": spectrum(number).reshape(-1, 1),
            "redshift": 0.01 * number,
            "targetid": TARGETS + number,
        }


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> datasets.DatasetDict:
    cache = str(tmp_path_factory.mktemp("cache"))

    def split(numbers: range) -> datasets.Dataset:
        return datasets.Dataset.from_generator(examples, FEATURES, cache, gen_kwargs={"numbers": numbers})

    return datasets.DatasetDict({"train": split(range(5)), "test": split(range(5, 7))})


@pytest.fixture(scope="module")
def saved(exported: datasets.DatasetDict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    exported.save_to_disk(str(folder / "pairs"), num_shards={"train": 1, "test": 2})
    exported["train"].save_to_disk(str(folder / "train"))
    # Large tables come in many batches.
    table = exported["train"].data.table
    with pa.ipc.new_stream(folder / "batches.arrow", table.schema) as stream:
        for batch in table.to_batches(max_chunksize=3):
            stream.write_batch(batch)
    exported["train"].to_parquet(folder / "parquet" / "data" / "train-00000-of-00001.parquet", batch_size=2)
    return folder


def test_the_published_file(tmp_path: Path) -> None:
    source = AstroclipHdf5(write_hdf5(tmp_path / "pairs.h5", [range(5), range(5, 8)]), PAIRS)
    assert source.partitions == 2
    assert [list(source.keys(group)) for group in range(2)] == [
        [str(TARGETS + number) for number in numbers] for numbers in (range(5), range(5, 8))
    ]
    samples = list(all_samples(source))
    assert len(samples) == 8
    for number, sample in enumerate(samples):
        check_pair(sample, number)
    # The first int(0.8 n) rows of each group.
    assert [sample.metadata["upstream_split"] for sample in samples] == [*["train"] * 4, "test", *["train"] * 2, "test"]
    chosen = list(source.read(1, [0, 2]))
    assert [sample.key for sample in chosen if isinstance(sample, Sample)] == [str(TARGETS + 5), str(TARGETS + 7)]


def test_ten_groups_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    source = AstroclipHdf5(
        write_hdf5(tmp_path / "pairs.h5", [range(number, number + 1) for number in range(11)]), PAIRS
    )
    assert [key for group in range(11) for key in source.keys(group)] == [str(TARGETS + number) for number in range(11)]


@pytest.mark.parametrize(
    ("stored", "files", "splits"),
    [
        ("pairs", 3, ["train"] * 5 + ["test"] * 2),
        ("pairs/test", 2, [None] * 2),
        ("train", 1, [None] * 5),
        ("parquet", 1, ["train"] * 5),
        ("parquet/data/train-00000-of-00001.parquet", 1, ["train"] * 5),
    ],
)
def test_the_exports(saved: Path, stored: str, files: int, splits: list[str | None]) -> None:
    source = AstroclipArrow([saved / stored], PAIRS)
    assert source.partitions == files
    first = 5 if stored == "pairs/test" else 0
    samples = list(all_samples(source))
    assert [sample.key for sample in samples] == [key for file in range(files) for key in source.keys(file)]
    for place, sample in enumerate(samples):
        check_pair(sample, first + place)
    assert [sample.metadata.get("upstream_split") for sample in samples] == splits


@pytest.mark.parametrize("stored", ["train", "batches.arrow", "parquet"])
@pytest.mark.parametrize("rows", [[], [0], [4], [1, 3], [0, 1, 2, 3, 4]])
def test_any_rows_of_an_export(saved: Path, stored: str, rows: list[int]) -> None:
    source = AstroclipArrow([saved / stored], PAIRS)
    samples = list(source.read(0, rows))
    assert len(samples) == len(rows)
    for row, sample in zip(rows, samples, strict=True):
        assert isinstance(sample, Sample)
        check_pair(sample, row)
    with pytest.raises(DataError, match="no row 5"):
        list(source.read(0, [4, 5]))


def test_batches_without_wanted_rows_are_skipped(saved: Path) -> None:
    (file,) = find_arrow_files(saved / "batches.arrow")
    starts = [(start, batch.num_rows) for start, batch in file.batches(["targetid"], None)]
    assert starts == [(0, 3), (3, 2)]
    assert [start for start, _ in file.batches(["targetid"], np.array([4]))] == [3]


def test_real_images_with_another_layout(real_data: Path, tmp_path: Path) -> None:
    cutouts = LegacyFits([real_data / "images" / "decals_float_grz" / f"example_{letter}.fits" for letter in "abc"])
    images = np.stack([image_of(sample) for sample in all_samples(cutouts)])
    for axes, order in (("whc", (0, 3, 2, 1)), ("hwc", (0, 2, 3, 1)), ("chw", (0, 1, 2, 3)), ("cwh", (0, 1, 3, 2))):
        path = write_hdf5(tmp_path / f"{axes}.h5", [range(3)], images=images.transpose(order))
        named = AstroclipHdf5(path, PairFormat(PAIRS.image, PAIRS.spectrum, axes))
        found = AstroclipHdf5(path, PAIRS)
        for row, (one, other) in enumerate(zip(all_samples(named), all_samples(found), strict=True)):
            np.testing.assert_array_equal(image_of(one), images[row])
            # What only the option can tell: the other orders come out transposed.
            turned = images[row] if axes in ("whc", "chw") else images[row].transpose(0, 2, 1)
            np.testing.assert_array_equal(image_of(other), turned)


@pytest.mark.parametrize(
    ("shape", "axes", "message"),
    [
        ((152, 3, 152), "auto", "The bands are not where --image-axes has them"),
        ((152, 152, 3), "chw", "axes chw"),
        ((3, 152, 152), "whc", "axes whc"),
        ((152, 152, 4), "auto", "Each has 3 bands and 152 x 152 pixels"),
        ((96, 96, 3), "auto", "Each has 3 bands and 152 x 152 pixels"),
        ((3, 152, 3), "auto", "Each has 3 bands"),
    ],
)
def test_images_of_unexpected_shape_are_refused(
    tmp_path: Path, shape: tuple[int, ...], axes: str, message: str
) -> None:
    path = write_hdf5(tmp_path / "pairs.h5", [range(1)], images=np.ones((1, *shape), np.float32))
    source = AstroclipHdf5(path, PairFormat(PAIRS.image, PAIRS.spectrum, axes))
    with pytest.raises(DataError, match=rf"pairs.h5 group 0: images: shape.*{message}"):
        list(source.read(0, [0]))


def test_a_bad_pair_comes_as_its_error(tmp_path: Path) -> None:
    images = np.stack([galaxy(number).T for number in range(6)])
    spectra = np.stack([spectrum(number).reshape(-1, 1) for number in range(6)])
    redshifts = np.full(6, 0.1)
    images[0, 5, 5, 1] = np.inf
    images[1, 5, 5, 1] = 1e5
    images[2, :, :, 2] = 0
    spectra[3, 10:12] = np.nan
    spectra[4] = 0
    redshifts[5] = np.nan
    path = write_hdf5(tmp_path / "pairs.h5", [range(6)], images=images, spectra=spectra, redshifts=redshifts)
    found = list(AstroclipHdf5(path, PairFormat(ImageLayout(dtype="float16"), PAIRS.spectrum)).read(0, range(6)))
    for row, (error, message) in enumerate(
        zip(
            found,
            (
                "image: 1 pixels not finite",
                "image: 100000 nanomaggies, too large for float16",
                "image: no data in z",
                "spectrum: 2 values not finite",
                "spectrum: 0 everywhere",
                "redshift: nan",
            ),
            strict=True,
        )
    ):
        assert isinstance(error, DataError)
        assert f"pairs.h5 group 0 row {row} ({TARGETS + row}): {message}" in str(error)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("targetids", None, "dataset 0/targetids: missing"),
        ("images", None, "dataset 0/images: missing"),
        ("spectra", np.ones((1, 7081, 1), np.float32), r"dataset 0/spectra: shape \(1, 7081, 1\)"),
        ("redshifts", np.ones(2), r"dataset 0/redshifts: shape \(2,\). It is \(1\)"),
        ("targetids", np.ones(1), "dataset 0/targetids: dtype float64"),
    ],
)
def test_wrong_datasets_are_named(tmp_path: Path, name: str, value: Any, message: str) -> None:
    source = AstroclipHdf5(write_hdf5(tmp_path / "pairs.h5", [range(1)], **{name: value}), PAIRS)
    with pytest.raises(DataError, match=rf"pairs.h5 {message}"):
        list(source.read(0, [0]))


def test_files_of_another_kind(tmp_path: Path, saved: Path) -> None:
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["images"] = np.zeros(3)
    with pytest.raises(DataError, match=r"flat.h5: no groups"):
        AstroclipHdf5(tmp_path / "flat.h5", PAIRS)
    path = write_hdf5(tmp_path / "cut.h5", [range(2)])
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"cut.h5: not a readable HDF5 file"):
        AstroclipHdf5(path, PAIRS)
    with pytest.raises(DataError, match=r"cut.h5: no table"):
        AstroclipArrow([path], PAIRS)
    with pytest.raises(DataError, match="gone: no such file or folder"):
        AstroclipArrow([tmp_path / "gone"], PAIRS)
    with pytest.raises(DataError, match="no table"):
        AstroclipArrow([tmp_path], PAIRS)


@pytest.mark.parametrize("cut", [8, 100, 1_000_000])
def test_a_truncated_stream_is_named(saved: Path, tmp_path: Path, cut: int) -> None:
    """Without its last 8 bytes the stream reads well to the end of a batch: nothing else would tell."""
    (whole,) = (saved / "train").glob("*.arrow")
    path = tmp_path / "cut.arrow"
    path.write_bytes(whole.read_bytes()[:-cut])
    source = AstroclipArrow([path], PAIRS)
    for read in (lambda: source.keys(0), lambda: list(source.read(0, [0]))):
        with pytest.raises(DataError, match=r"cut.arrow: no end of stream"):
            read()


def test_damaged_bytes_are_named(saved: Path, tmp_path: Path) -> None:
    (whole,) = (saved / "train").glob("*.arrow")
    path = tmp_path / "damaged.arrow"
    data = bytearray(whole.read_bytes())
    (file,) = find_arrow_files(whole)
    _, batch = next(file.batches(["image"], None))
    column = batch.column("image")
    storage = column.storage if isinstance(column, pa.ExtensionArray) else column
    offsets = np.frombuffer(storage.buffers()[3], np.int32)  # of the rows in their images
    place = data.find(offsets.tobytes())
    assert place > 0
    data[place + 400 : place + 404] = np.int32(2**31 - 1).tobytes()
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged.arrow: not readable"):
        list(AstroclipArrow([path], PAIRS).read(0, [0]))
    parquet = tmp_path / "cut.parquet"
    (whole,) = (saved / "parquet" / "data").glob("*.parquet")
    parquet.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cut.parquet: not readable"):
        AstroclipArrow([parquet], PAIRS).keys(0)


def rewrite(saved: Path, path: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    """The rows of an export as plain Parquet, changed."""
    (file,) = find_arrow_files(saved / "train")
    batches = [batch for _, batch in file.batches(["image", "spectrum", "redshift", "targetid"], None)]
    plain = pa.table(
        {
            name: pa.chunked_array(
                [column.storage if isinstance(column, pa.ExtensionArray) else column for column in columns]
            )
            for name, columns in ((name, [batch.column(name) for batch in batches]) for name in batches[0].schema.names)
        }
    )
    pq.write_table(change(plain), path)
    return path


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("image", [None, [[[1.0, 2.0, 3.0]]]], "row 0: image: absent"),
        ("image", [[[[1.0, 2.0, 3.0], [1.0]]]] * 2, "row 0: image: ragged"),
        ("image", [[[[1, 2, 3]]]] * 2, "row 0: image: int64"),
        ("image", [[[[1.0, None, 3.0]]]] * 2, "row 0: image: double, 1 values absent"),
        ("image", [[[[1.0, 2.0, 3.0]]]] * 2, r"images: shape \(1, 1, 3\)"),
        ("spectrum", [[[1.0], [2.0]]] * 2, r"spectrum: shape \(2, 1\)"),
        ("redshift", [None, 0.1], "row 0: redshift: None"),
        ("targetid", [None, 7], "column targetid: int64, 1 absent"),
        ("targetid", ["a", "b"], "column targetid: string"),
        ("redshift", None, "no column redshift"),
    ],
)
def test_wrong_columns_are_named(saved: Path, tmp_path: Path, column: str, value: Any, message: str) -> None:
    def change(table: pa.Table) -> pa.Table:
        if value is None:
            return table.drop_columns([column])
        return table.slice(0, 2).set_column(table.schema.names.index(column), column, pa.array(value))

    path = rewrite(saved, tmp_path / "changed.parquet", change)
    with pytest.raises(DataError, match=message):
        list(all_samples(AstroclipArrow([path], PAIRS)))


def test_a_folder_that_lacks_files_is_refused(exported: datasets.DatasetDict, tmp_path: Path) -> None:
    for part in (0, 2):
        exported["test"].to_parquet(tmp_path / "hub" / f"train-0000{part}-of-00003.parquet")
    with pytest.raises(DataError, match="train: 2 of 3 files"):
        AstroclipArrow([tmp_path / "hub"], PAIRS)
    assert AstroclipArrow(sorted((tmp_path / "hub").iterdir()), PAIRS).partitions == 2
    exported.save_to_disk(str(tmp_path / "saved"), num_shards={"train": 2, "test": 1})
    (tmp_path / "saved" / "train" / "data-00001-of-00002.arrow").unlink()
    source = AstroclipArrow([tmp_path / "saved"], PAIRS)
    assert len(source.keys(0)) == 3
    with pytest.raises(DataError, match=r"data-00001-of-00002.arrow: no such file"):
        source.keys(1)
    (tmp_path / "saved" / "test" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"state.json: not readable"):
        AstroclipArrow([tmp_path / "saved"], PAIRS)


@pytest.mark.parametrize("name", ["astroclip-hdf5", "astroclip-arrow"])
def test_they_are_pickled_and_made_from_arguments(name: str, saved: Path, tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "pairs.h5", [range(3)]) if name == "astroclip-hdf5" else saved / "train"
    parser = argparse.ArgumentParser()
    source_class(name).add_arguments(parser)
    args = parser.parse_args([str(path), "--dtype", "float16", "--image-axes", "hwc"])
    source: Source = source_class(name).from_arguments(args)
    assert source.describe()["image_axes"] == "hwc"
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    for here, there in zip(all_samples(source), all_samples(copy), strict=True):
        assert here.metadata == there.metadata
        assert image_of(here).dtype == np.float16
        assert image_of(here)[1, 120, 10] > 99  # named hwc, the image stays transposed
        np.testing.assert_array_equal(image_of(here), image_of(there))
