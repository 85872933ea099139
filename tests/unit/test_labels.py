"""Labels from catalogues in the layouts in which they are published, merged into the samples of any source."""

from __future__ import annotations

import argparse
import csv
import math
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import ConfigError, DataError
from shards.labels.command import add_labels_argument, with_labels
from shards.labels.galaxy_zoo import QUESTIONS, read_galaxy_zoo
from shards.labels.label_file import LabelFile
from shards.labels.labelled import Labelled
from shards.labels.provabgs import provabgs_labels, read_published
from shards.labels.table import LabelTable
from shards.sample import Sample
from shards.source import Origin, Source
from tests.random_catalogue import offset, random_positions
from tests.random_survey import IMAGE, random_sample

TARGETS = 39633345008634465 + np.arange(6)


class Galaxies(Source):
    """A source of one partition with the metadata given."""

    name = "galaxies"
    image: ImageLayout | None = IMAGE
    spectrum: SpectrumLayout | None = None
    ivar = False

    def __init__(self, metadata: list[dict[str, Any]]) -> None:
        self._metadata = metadata

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        raise NotImplementedError

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Galaxies:
        raise NotImplementedError

    def describe(self) -> dict[str, str | int | float | bool | None]:
        return {"galaxies": len(self._metadata)}

    @property
    def partitions(self) -> int:
        return 1

    def keys(self, partition: int) -> Sequence[str]:
        return [f"g{number}" for number in range(len(self._metadata))]

    def read(self, partition: int, rows: Sequence[int]) -> Iterator[Sample | DataError]:
        for row in rows:
            yield Sample(f"g{row}", image=random_sample(f"g{row}").image, metadata=dict(self._metadata[row]))


def labelled(source: Source, *labels: str, min_votes: int = 3) -> Origin:
    parser = argparse.ArgumentParser()
    add_labels_argument(parser)
    options = [option for text in labels for option in ("--labels", text)]
    return with_labels(source, parser.parse_args([*options, "--gz-min-votes", str(min_votes)]))


def labels_of(origin: Origin) -> list[dict[str, Any]]:
    samples = list(origin.read(0, range(len(origin.keys(0)))))
    assert all(isinstance(sample, Sample) for sample in samples)
    return [sample.metadata for sample in samples if isinstance(sample, Sample)]


def published_rows() -> np.ndarray:
    """Rows as the public catalogue has them; the fourth is not selected for its mass, the fifth for a magnitude."""
    rows = np.zeros(
        6,
        [
            ("TARGETID", "<i8"),
            ("Z_HP", "<f8"),
            ("PROVABGS_MCMC", "<f4", (100, 13)),
            ("PROVABGS_THETA_BF", "<f4", (13,)),
            ("PROVABGS_LOGMSTAR_BF", "<f4"),
            ("MAG_G", "<f4"),
            ("MAG_R", "<f4"),
            ("MAG_Z", "<f4"),
            ("IN_SPEC", "?"),
        ],
    )
    rows["TARGETID"], rows["Z_HP"] = TARGETS[::-1], np.linspace(0.1, 0.4, 6)
    rows["PROVABGS_LOGMSTAR_BF"] = [9.5, 10.5, 11, -999, 10, 8]
    for band in "GRZ":
        rows[f"MAG_{band}"] = 18
    rows["MAG_Z"][4] = -1
    return rows


def write_table_of_rows(path: Path, rows: np.ndarray) -> Path:
    """As astropy's Table.write does."""
    with h5py.File(path, "w") as file:
        file.create_dataset("__astropy_table__", data=rows)
        file.create_dataset("__astropy_table__.__table_column_meta__", data=np.array([b"datatype:"]))
    return path


def with_properties(rows: np.ndarray, **columns: Any) -> dict[str, np.ndarray]:
    """Rows as columns, with those that the emulator computes."""
    return {name: rows[name] for name in rows.dtype.names or ()} | {
        name: np.asarray(values) for name, values in columns.items()
    }


PROPERTIES = {
    "Z_MW": [0.02, 0.01, 0.005, 0.01, 0.01, 0.0],
    "TAGE_MW": [5.0, 6.0, 7.0, 5.0, 5.0, 3.0],
    "AVG_SFR": [1.0, 0.1, 0.0, 1.0, 1.0, np.nan],
}


def write_columns(path: Path, columns: dict[str, np.ndarray], group: str = "") -> Path:
    with h5py.File(path, "w") as file:
        into = file.create_group(group) if group else file
        for name, values in columns.items():
            into.create_dataset(name, data=values)
    return path


class TestProvabgs:
    def test_the_published_file(self, tmp_path: Path) -> None:
        path = write_table_of_rows(tmp_path / "BGS_ANY_full.provabgs.sv3.v0.hdf5", published_rows())
        source = labelled(Galaxies([{"targetid": int(target)} for target in TARGETS]), f"provabgs={path}")
        found = labels_of(source)
        assert [fields.get("provabgs_log_mstar") for fields in found] == [8, None, None, 11, 10.5, 9.5]
        assert found[3]["provabgs_redshift"] == pytest.approx(0.22)
        assert found[3]["provabgs_mag_g"] == 18
        # What only the emulator gives is absent.
        assert set(found[3]) == {
            "targetid",
            *(f"provabgs_{n}" for n in ("log_mstar", "redshift", "mag_g", "mag_r", "mag_z")),
        }
        assert set(found[1]) == {"targetid"}

    @pytest.mark.parametrize("group", ["", "table"])
    def test_star_formation(self, tmp_path: Path, group: str) -> None:
        columns = with_properties(
            published_rows(), **{name: np.array(values)[:, None] for name, values in PROPERTIES.items()}
        )
        path = write_columns(tmp_path / "provabgs.hdf5", columns, group)
        found = labels_of(labelled(Galaxies([{"targetid": int(t)} for t in TARGETS[::-1]]), f"provabgs={path}"))
        assert found[0]["provabgs_log_ssfr"] == pytest.approx(0.0 - 9.5)
        assert found[1]["provabgs_log_ssfr"] == pytest.approx(-1.0 - 10.5)
        assert found[1]["provabgs_upstream_ssfr"] == pytest.approx(math.log(0.1) - math.log(0.01))
        assert (found[1]["provabgs_z_mw"], found[1]["provabgs_tage_mw"]) == (0.01, 6.0)
        # No logarithm of nothing: absent, never infinite.
        assert found[2]["provabgs_avg_sfr"] == 0.0
        assert "provabgs_log_ssfr" not in found[2]
        assert "provabgs_upstream_ssfr" not in found[2]
        assert "provabgs_avg_sfr" not in found[5]

    def test_multimodal_universe(self, tmp_path: Path) -> None:
        columns = with_properties(published_rows(), **PROPERTIES, ZERR=np.zeros(6), MAG_W1=np.full(6, 17.0))
        columns |= {"object_id": np.array([str(target).encode() for target in columns.pop("TARGETID")])}
        columns |= {"ra": np.arange(6.0), "dec": np.arange(6.0), "LOG_MSTAR": columns.pop("PROVABGS_LOGMSTAR_BF")}
        folder = tmp_path / "desi_provabgs" / "healpix=12"
        folder.mkdir(parents=True)
        write_columns(folder / "001-of-001.hdf5", columns)
        source = labelled(
            Galaxies([{"targetid": int(t)} for t in TARGETS]), f"mmu-provabgs={tmp_path / 'desi_provabgs'}"
        )
        found = labels_of(source)
        assert found[5]["provabgs_log_ssfr"] == pytest.approx(-9.5)
        assert found[5]["provabgs_mag_w1"] == 17.0
        assert [len(fields) > 1 for fields in found] == [True, False, False, True, True, True]

    @pytest.mark.parametrize("column", ["TARGETID", "PROVABGS_LOGMSTAR_BF", "MAG_R"])
    def test_a_missing_column(self, tmp_path: Path, column: str) -> None:
        columns = with_properties(published_rows())
        del columns[column]
        with pytest.raises(DataError, match=f"column {column}: absent"):
            read_published(write_columns(tmp_path / "provabgs.hdf5", columns))

    def test_files_that_are_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "text.hdf5").write_text("no table")
        with pytest.raises(DataError, match=r"text\.hdf5"):
            read_published(tmp_path / "text.hdf5")
        uneven = with_properties(published_rows(), MAG_R=np.ones(3))
        with pytest.raises(DataError, match="different lengths"):
            read_published(write_columns(tmp_path / "uneven.hdf5", uneven))
        text = with_properties(published_rows(), MAG_R=np.array([b"bright"] * 6))
        with pytest.raises(DataError, match="column MAG_R"):
            read_published(write_columns(tmp_path / "text_column.hdf5", text))

    def test_a_target_that_comes_twice(self, tmp_path: Path) -> None:
        rows = published_rows()
        rows["TARGETID"][1] = rows["TARGETID"][0]
        path = write_table_of_rows(tmp_path / "provabgs.hdf5", rows)
        with pytest.raises(DataError, match="twice, with different labels"):
            LabelFile("provabgs", path).load()
        rows[1] = rows[0]
        assert len(LabelFile("provabgs", write_table_of_rows(tmp_path / "again.hdf5", rows)).load()) == 3

    def test_nothing_selected(self) -> None:
        table = pa.table({"targetid": [1], "log_mstar": [-1.0], "mag_g": [1.0], "mag_r": [1.0], "mag_z": [1.0]})
        with pytest.raises(DataError, match="no galaxy of 1"):
            provabgs_labels(table, "file")


def galaxy_zoo_row(ra: float, dec: float, votes: int) -> dict[str, Any]:
    """A galaxy whose volunteers all gave the first answer; nobody was asked but the first question's followers."""
    row: dict[str, Any] = {"iauname": f"J{ra:.4f}", "ra": ra, "dec": dec, "redshift": "", "wrong_size_warning": "False"}
    for question, answers in QUESTIONS.items():
        total = votes if question in ("smooth-or-featured", "how-rounded", "merging") else 0
        row[f"{question}_total-votes"] = total
        for place, answer in enumerate(answers):
            row[f"{question}_{answer}"] = total if place == 0 else 0
            row[f"{question}_{answer}_fraction"] = float(place == 0) if total else ""
            row[f"{question}_{answer}_debiased"] = (0.9 if place == 0 else 0.1) if total else ""
    return row


def write_galaxy_zoo(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


class TestGalaxyZoo:
    def test_ten_questions_and_thirty_four_answers(self) -> None:
        assert (len(QUESTIONS), sum(map(len, QUESTIONS.values()))) == (10, 34)

    def test_the_published_file(self, tmp_path: Path) -> None:
        rows = [galaxy_zoo_row(150.0, 2.0, 40), galaxy_zoo_row(150.0, 2.01, 2), galaxy_zoo_row(0.00001, 89.0, 3)]
        path = write_galaxy_zoo(tmp_path / "gz_decals_volunteers_5.csv", rows)
        galaxies = [{"ra": 150.0, "dec": 2.0 + 0.45 / 3600}, {"ra": 150.0, "dec": 2.01}, {"ra": 359.99999, "dec": 89.0}]
        galaxies += [{"ra": 150.0, "dec": 2.0 + 0.55 / 3600}]
        source = labelled(Galaxies(galaxies), f"gz-decals={path}")
        first, second, third, fourth = labels_of(source)
        assert first["gz_smooth-or-featured_total-votes"] == first["gz_smooth-or-featured_smooth"] == 40
        assert (first["gz_how-rounded_round_fraction"], first["gz_merging_none_debiased"]) == (1.0, 0.9)
        assert first["gz_bar_total-votes"] == first["gz_bar_strong"] == 0
        assert "gz_bar_strong_fraction" not in first
        assert isinstance(first["gz_merging_merger"], int)
        assert len(second) == len(fourth) == 2
        assert third["gz_merging_total-votes"] == 3
        assert "2 galaxies by position within 0.5 arcsec" in str(source.describe()["labels_gz-decals"])
        assert len(labels_of(labelled(Galaxies(galaxies), f"gz-decals={path}", min_votes=2))[1]) > 2

    def test_broken_files(self, tmp_path: Path) -> None:
        row = galaxy_zoo_row(150.0, 2.0, 40)
        without = {name: value for name, value in row.items() if name != "spiral-arm-count_cant-tell"}
        with pytest.raises(DataError, match="column spiral-arm-count_cant-tell: absent"):
            read_galaxy_zoo(write_galaxy_zoo(tmp_path / "missing.csv", [without]))
        with pytest.raises(DataError, match="no galaxy with 50 votes"):
            read_galaxy_zoo(write_galaxy_zoo(tmp_path / "few.csv", [row]), 50)
        with pytest.raises(DataError, match="not readable"):
            read_galaxy_zoo(write_galaxy_zoo(tmp_path / "text.csv", [row | {"ra": "12:30"}]))
        with pytest.raises(DataError, match="not all whole numbers"):
            read_galaxy_zoo(write_galaxy_zoo(tmp_path / "half.csv", [row | {"bar_no": 1.5}]))
        with pytest.raises(DataError, match="row 0: ra: absent or NaN"):
            LabelFile("gz-decals", write_galaxy_zoo(tmp_path / "nowhere.csv", [row | {"ra": ""}])).load()
        with pytest.raises(DataError, match="no such file"):
            read_galaxy_zoo(tmp_path / "absent.csv")


class TestTables:
    def test_the_nearest_by_position_is_what_looking_at_all_gives(self) -> None:
        rng = np.random.default_rng(1)
        ra, dec = random_positions(300, rng)
        crowd = offset(np.full(200, 0.0), np.full(200, 90.0), rng.uniform(0, 20, 200), rng.uniform(0, 6.3, 200))
        ra, dec = np.concatenate([ra, crowd[0]]), np.concatenate([dec, crowd[1]])
        table = LabelTable(pa.table({"ra": ra, "dec": dec, "number": np.arange(500)}), "table", 2.0)
        near = offset(ra, dec, rng.uniform(0, 3, 500), rng.uniform(0, 6.3, 500))
        longitude, latitude = np.radians(ra), np.radians(dec)
        for here_ra, here_dec in zip(*near, strict=True):
            half = np.sin((np.radians(here_dec) - latitude) / 2) ** 2
            half += np.cos(np.radians(here_dec)) * np.cos(latitude) * np.sin((np.radians(here_ra) - longitude) / 2) ** 2
            distance = np.degrees(2 * np.arcsin(np.sqrt(half))) * 3600
            expected = {"number": int(distance.argmin())} if distance.min() <= 2 else {}
            assert table.find(Sample("g", metadata={"ra": here_ra, "dec": here_dec})) == expected

    def test_the_first_of_equal_positions(self) -> None:
        table = LabelTable(pa.table({"ra": [1.0] * 3, "dec": [1.0] * 3, "number": [7, 8, 9]}), "table")
        assert table.find(Sample("g", metadata={"ra": 1.0, "dec": 1.0})) == {"number": 7}

    def test_any_parquet_by_targetid(self, tmp_path: Path) -> None:
        columns = {"targetid": [3, 1], "bar": [None, True], "mass": [float("nan"), 9.5], "kind": ["E", ""]}
        pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
        galaxies: list[dict[str, Any]] = [{"targetid": 1, "mass": 9.5}, {"targetid": 2}, {"targetid": 3}, {}]
        found = labels_of(labelled(Galaxies(galaxies), f"table={tmp_path / 'labels.parquet'}"))
        assert found == [{"targetid": 1, "mass": 9.5, "bar": True}, {"targetid": 2}, {"targetid": 3, "kind": "E"}, {}]

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"targetid": [1.0], "mass": [1.0]}, "targetid: double"),
            ({"targetid": [1, None], "mass": [1.0, 2.0]}, "1 rows without"),
            ({"targetid": ["x"], "mass": [1.0]}, "64-bit"),
            ({"name": ["x"], "mass": [1.0]}, "no column targetid, nor ra and dec"),
            ({"targetid": [1]}, "no labels"),
            ({"ra": [1.0, 370.0], "dec": [1.0, 1.0], "mass": [1.0, 1.0]}, "row 1: ra 370"),
            ({"ra": [1.0], "dec": [float("nan")], "mass": [1.0]}, "row 0: dec"),
            ({"ra": ["x"], "dec": [1.0], "mass": [1.0]}, "ra: string"),
        ],
    )
    def test_tables_that_cannot_be_used(self, columns: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            LabelTable(pa.table(columns), "table")


class TestLabelled:
    def table(self, folder: Path, name: str = "labels", **columns: Any) -> str:
        pq.write_table(pa.table({"targetid": [1, 2], **columns}), folder / f"{name}.parquet")
        return f"table={folder / name}.parquet"

    def test_without_labels_it_is_the_source(self) -> None:
        source = Galaxies([{}])
        assert labelled(source) is source

    def test_it_is_a_source_and_can_be_sent_to_another_process(self, tmp_path: Path) -> None:
        source = Labelled(Galaxies([{"targetid": 2}]), [LabelFile.parse(self.table(tmp_path, mass=[1.0, 2.0]), 3)])
        other = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own object, as Ray sends it
        assert (other.name, other.image, other.spectrum, other.ivar) == ("galaxies", IMAGE, None, False)
        assert (other.partitions, list(other.keys(0)), other.describe()["galaxies"]) == (1, ["g0"], 1)
        assert labels_of(other) == [{"targetid": 2, "mass": 2.0}]

    def test_bad_galaxies_stay_in_their_place(self, tmp_path: Path) -> None:
        class Broken(Galaxies):
            def read(self, partition: int, rows: Sequence[int]) -> Iterator[Sample | DataError]:
                yield DataError("galaxy", "broken", "Leave it out.")
                yield from super().read(partition, [1])

        source = labelled(Broken([{}, {"targetid": 1}]), self.table(tmp_path, mass=[1.0, 2.0]))
        first, second = source.read(0, [0, 1])
        assert isinstance(first, DataError)
        assert isinstance(second, Sample)
        assert second.metadata["mass"] == 1.0

    def test_names_that_clash(self, tmp_path: Path) -> None:
        mass = self.table(tmp_path, mass=[1.0, 2.0])
        with pytest.raises(ConfigError, match="rename the column"):
            labels_of(labelled(Galaxies([{"targetid": 1, "mass": 5.0}]), mass))
        with pytest.raises(ConfigError, match="have this label"):
            labelled(Galaxies([{}]), mass, self.table(tmp_path, "others", mass=[1.0, 2.0]))

    def test_it_says_when_nothing_can_be_found(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        labels_of(labelled(Galaxies([{"ra": 1.0}] * 3), self.table(tmp_path, mass=[1.0, 2.0])))
        assert "none of 3 samples has targetid: no labels of labels.parquet" in caplog.text

    @pytest.mark.parametrize("text", ["provabgs", "zoo=file.csv", "table="])
    def test_kinds_that_there_are_not(self, text: str) -> None:
        with pytest.raises(ConfigError, match="--labels"):
            labelled(Galaxies([{}]), text)
