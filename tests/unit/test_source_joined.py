"""Pairs of two datasets by a match table: the arrays are those of the originals, bit for bit."""

from __future__ import annotations

import argparse
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import shards.sources.joined as joined_module
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.stored.manifest import SPLITS as ALL
from astroclip_dist.data.stored.manifest import Split
from astroclip_dist.errors import DataError
from shards.building.build import build
from shards.building.executors import Workers
from shards.crossmatch.catalogue import write_catalogue
from shards.crossmatch.match_table import MatchTable
from shards.crossmatch.position import match_by_position
from shards.crossmatch.table import CatalogueTable
from shards.labels.label_file import LabelFile
from shards.labels.labelled import Labelled
from shards.sample import Sample
from shards.source import all_samples, source_class
from shards.sources.joined import Joined
from shards.stored.reading import read_sample
from shards.writing.writer import ShardWriter
from tests.random_survey import IMAGE, SPECTRUM, random_sample

GALAXIES = 60
SPLITS: dict[Split, float] = {"train": 0.5, "val": 0.25, "test": 0.25}


def equal(found: np.ndarray | None, expected: np.ndarray | None) -> bool:
    """Both there, and the same bits."""
    assert found is not None
    assert expected is not None
    return found.dtype == expected.dtype and found.tobytes() == expected.tobytes()


def image_key(number: int) -> str:
    return f"9010-{number}-7"


def spectrum_key(number: int) -> str:
    return str(39633345008634465 + number)


def write_parts(folder: Path) -> tuple[str, str]:
    """Galaxies 0 to 59 with images, and 20 to 79 in another order with spectra."""
    images, spectra = str(folder / "images"), str(folder / "spectra")
    with ShardWriter(images, IMAGE, None, False, {"kind": "i"}, samples_per_shard=9, split_fractions=SPLITS) as writer:
        for number in range(GALAXIES):
            sample = random_sample(image_key(number))
            metadata = {"ra": number / 10, "dec": 5.0, "redshift": 9.0, "ebv": 0.5, "image_only": "x"}
            writer.add(Sample(sample.key, image=sample.image, metadata=metadata))
        writer.finish()
    with ShardWriter(
        spectra, None, SPECTRUM, True, {"kind": "s"}, samples_per_shard=8, split_fractions=SPLITS
    ) as writer:
        for number in np.random.default_rng(1).permutation(np.arange(20, 20 + GALAXIES)).tolist():
            sample = random_sample(spectrum_key(number))
            metadata = {"ra": number / 10, "dec": 5.0001, "redshift": 0.1, "ebv": 0.5, "targetid": int(sample.key)}
            writer.add(Sample(sample.key, spectrum=sample.spectrum, ivar=sample.ivar, metadata=metadata))
        writer.finish()
    return images, spectra


def match(folder: Path, images: str, spectra: str) -> str:
    for name, url in (("a", images), ("b", spectra)):
        write_catalogue(url, str(folder / f"{name}.parquet"), progress=io.StringIO())
    out = str(folder / "match.parquet")
    a, b = (CatalogueTable(folder / f"{name}.parquet") for name in "ab")
    match_by_position(a, b, out, 1.0, progress=io.StringIO())
    return out


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    folder = tmp_path_factory.mktemp("parts")
    images, spectra = write_parts(folder)
    return images, spectra, match(folder, images, spectra)


@pytest.fixture(params=[2048, 7])
def partition_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(joined_module, "PARTITION_ROWS", request.param)
    return request.param


def test_pairs_are_the_originals(parts: tuple[str, str, str], partition_rows: int) -> None:
    source = Joined(*parts)
    assert (source.image, source.spectrum, source.ivar) == (IMAGE, SPECTRUM, True)
    assert source.partitions == -(-40 // partition_rows)
    keys = [key for partition in range(source.partitions) for key in source.keys(partition)]
    samples = list(all_samples(source))
    assert [sample.key for sample in samples] == keys
    assert sorted(keys) == [spectrum_key(number) for number in range(20, 60)]
    for sample in samples:
        number = int(sample.key) - int(spectrum_key(0))
        image, spectrum = random_sample(image_key(number)), random_sample(spectrum_key(number))
        for found, expected in (
            (sample.image, image.image),
            (sample.spectrum, spectrum.spectrum),
            (sample.ivar, spectrum.ivar),
        ):
            assert equal(found, expected)
        separation = sample.metadata.pop("separation_arcsec")
        assert separation == pytest.approx(0.36, abs=1e-6)
        assert sample.metadata == {
            "ra": number / 10,
            "dec": 5.0001,
            "image_dec": 5.0,
            "redshift": 0.1,
            "image_redshift": 9.0,
            "ebv": 0.5,
            "targetid": int(sample.key),
            "image_only": "x",
            "image_key": image_key(number),
            "spectrum_key": sample.key,
        }


def test_partitions_follow_the_shards_of_the_images(parts: tuple[str, str, str]) -> None:
    table = MatchTable(parts[2]).read(0, 40, ["shard_a", "row_a"]).to_pylist()
    names = list(dict.fromkeys(row["shard_a"] for row in table))
    places = [(names.index(row["shard_a"]), row["row_a"]) for row in table]
    assert places == sorted(places)


def test_some_rows_and_another_process(parts: tuple[str, str, str], partition_rows: int) -> None:
    source = pickle.loads(pickle.dumps(Joined(*parts, key_of="image")))  # noqa: S301 - our own object, as Ray sends it
    keys = source.keys(0)
    assert set(keys) <= {image_key(number) for number in range(GALAXIES)}
    found = list(source.read(0, [1, 3, 6]))
    assert [sample.key for sample in found if isinstance(sample, Sample)] == [keys[1], keys[3], keys[6]]
    assert list(source.read(0, [])) == []


def test_the_description_says_how_they_were_matched(parts: tuple[str, str, str]) -> None:
    described = Joined(*parts).describe()
    assert (described["match_radius_arcsec"], described["match_matched"]) == (1.0, 40)
    assert (described["images"], described["spectra"], described["match_epoch_a"]) == ("i", "s", "unknown")
    assert not any(str(value).startswith(("/", "file:")) for value in described.values())


def test_through_the_arguments_of_the_command(parts: tuple[str, str, str]) -> None:
    parser = argparse.ArgumentParser()
    Joined.add_arguments(parser)
    images, spectra, table = parts
    args = parser.parse_args(["--images", images, "--spectra", spectra, "--match", table, "--key", "image"])
    assert source_class("joined") is Joined
    assert Joined.from_arguments(args).keys(0)[0].startswith("9010-")


def rewritten(parts: tuple[str, str, str], folder: Path, **columns: Any) -> str:
    """The match table with some columns changed in its first row."""
    table = pq.read_table(parts[2])
    for name, value in columns.items():
        place = table.column_names.index(name)
        values = [value, *table[name].to_pylist()[1:]]
        table = table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    pq.write_table(table, folder / "changed.parquet")
    return str(folder / "changed.parquet")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"key_a": "9010-1-8"}, "Expected is 9010-1-8"),
        ({"row_b": 4000}, "only 8 samples|only [1-8] samples"),
        ({"shard_a": "train-000099"}, "shard train-000099: not there"),
        ({"shard_b": None}, "no place in a dataset"),
    ],
)
def test_a_pair_that_is_not_there(
    parts: tuple[str, str, str], tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    source = Joined(*parts[:2], rewritten(parts, tmp_path, **columns))
    first, *others = source.read(0, range(40))
    assert isinstance(first, DataError)
    with pytest.raises(DataError, match=message):
        raise first
    assert all(isinstance(other, Sample) for other in others)


def test_a_damaged_image(parts: tuple[str, str, str], tmp_path: Path) -> None:
    images, spectra = write_parts(tmp_path)
    row = MatchTable(parts[2]).read(5, 6, ["shard_a", "row_a", "key_a"]).to_pylist()[0]
    tar = Path(images) / f"{row['shard_a']}.tar"
    shard = next(shard for shard in Dataset.open([images], ALL).shards if shard.tar_name == tar.name)
    offset = int(shard.read_index().members["image"].offset[row["row_a"]])
    content = bytearray(tar.read_bytes())
    content[offset + 1000] ^= 1
    tar.write_bytes(content)
    found = list(Joined(images, spectra, parts[2]).read(0, range(40)))
    assert [place for place, sample in enumerate(found) if isinstance(sample, DataError)] == [5]
    assert row["key_a"] in str(found[5])


def test_datasets_the_wrong_way_round(parts: tuple[str, str, str]) -> None:
    images, spectra, table = parts
    with pytest.raises(DataError, match="image: absent"):
        Joined(spectra, images, table)


def test_tables_that_are_no_match(parts: tuple[str, str, str], tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no table")
    pq.write_table(pa.table({"key_a": ["x"]}), tmp_path / "other.parquet")
    for name, message in (("absent", "no such file"), ("text", "not a Parquet"), ("other", "not a match table")):
        with pytest.raises(DataError, match=message):
            Joined(*parts[:2], str(tmp_path / f"{name}.parquet"))


def test_a_paired_dataset_with_labels_is_built(parts: tuple[str, str, str], tmp_path: Path) -> None:
    """The build machinery takes the pairs, labelled, and stores the originals' bytes."""
    numbers = np.arange(20, 60, 2)
    labels = {"targetid": [int(spectrum_key(number)) for number in numbers.tolist()], "bar": numbers / 100}
    pq.write_table(pa.table(labels), tmp_path / "labels.parquet")
    source = Labelled(Joined(*parts), [LabelFile("table", tmp_path / "labels.parquet")])
    out = str(tmp_path / "paired")
    manifest = build(
        source,
        out,
        samples_per_shard=9,
        split_fractions={"train": 0.5, "val": 0.25, "test": 0.25},
        workers=Workers(1),
        progress=io.StringIO(),
    )
    assert sum(manifest.counts.values()) == 40
    assert manifest.source["labels_table"] == "labels.parquet: 20 galaxies by targetid"
    seen = set()
    for shard in Dataset.open([out], ALL).shards:
        index = shard.read_index()
        for row in range(len(index)):
            sample = read_sample(shard.store, shard.entry.name, index, row)
            number = int(sample.key) - int(spectrum_key(0))
            image, spectrum = random_sample(image_key(number)), random_sample(spectrum_key(number))
            assert equal(sample.image, image.image)
            assert equal(sample.spectrum, spectrum.spectrum)
            assert equal(sample.ivar, spectrum.ivar)
            assert sample.metadata.get("bar") == (None if number % 2 else number / 100)
            assert sample.metadata["image_key"] == image_key(number)
            seen.add(number)
    assert seen == set(range(20, 60))
