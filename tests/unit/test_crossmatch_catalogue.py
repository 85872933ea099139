"""Catalogues of datasets and of survey tables, and matches by identifier and through the command."""

from __future__ import annotations

import argparse
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

import shards.crossmatch.table as table_module
from astroclip_dist.data.stored.manifest import Split
from astroclip_dist.errors import ConfigError, DataError, UserError
from astroclip_dist.store import Store
from shards.crossmatch.catalogue import write_catalogue
from shards.crossmatch.command import add_parsers
from shards.crossmatch.files import local_file
from shards.crossmatch.identifier import match_by_identifier
from shards.crossmatch.table import CatalogueTable, Columns
from shards.sample import Sample
from shards.writing.writer import ShardWriter
from tests.random_catalogue import random_positions, write_positions
from tests.random_survey import IMAGE, random_sample


def write_dataset(url: str, metadata: list[dict[str, Any]], samples_per_shard: int = 7) -> None:
    splits: dict[Split, float] = {"train": 0.6, "val": 0.2, "test": 0.2}
    with ShardWriter(
        url, IMAGE, None, False, {"kind": "test"}, samples_per_shard=samples_per_shard, split_fractions=splits
    ) as writer:
        for number, fields in enumerate(metadata):
            key = f"galaxy-{number}"
            writer.add(Sample(key, image=random_sample(key).image, metadata=fields))
        writer.finish()


def command(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    add_parsers(parser.add_subparsers(required=True))
    args = parser.parse_args([str(argument) for argument in arguments])
    return args.run(args)


def table(folder: Path, name: str, **columns: Any) -> CatalogueTable:
    path = folder / f"{name}.parquet"
    pq.write_table(pa.table(columns), path)
    return CatalogueTable(path)


class TestCatalogueOfADataset:
    def test_every_galaxy_and_its_place(self, tmp_path: Path) -> None:
        metadata: list[dict[str, Any]] = [
            {"ra": number / 10, "dec": -number / 10, "targetid": 39633345008634465 + number, "release": 9010}
            for number in range(50)
        ]
        metadata[3] = {"brickid": 5, "brick_objid": 77, "ref_epoch": 2015.5, "pmra": 1, "pmdec": -2.5}
        url = str(tmp_path / "dataset")
        write_dataset(url, metadata)
        out = tmp_path / "catalogue.parquet"
        summary = write_catalogue(url, str(out), threads=3, progress=io.StringIO())
        assert summary == {"galaxies": 50, "shards": summary["shards"], "without_position": 1}
        rows = pq.read_table(out).to_pylist()
        store = Store(url)
        assert {row["dataset"] for row in rows} == {store.url}
        assert sorted(row["key"] for row in rows) == sorted(f"galaxy-{number}" for number in range(50))
        for row in rows:
            fields = metadata[int(row["key"].split("-")[1])]
            assert {name: row[name] for name in ("ra", "dec", "targetid", "release", "brickid")} == {
                name: fields.get(name) for name in ("ra", "dec", "targetid", "release", "brickid")
            }
            assert row["shard"].startswith(row["split"])
        third = next(row for row in rows if row["key"] == "galaxy-3")
        assert (third["objid"], third["epoch"], third["pmra"], third["pmdec"]) == (77, 2015.5, 1.0, -2.5)
        # The order is that of the shards and of their rows, as the index has it.
        assert [(row["shard"], row["row"]) for row in rows] == [
            (shard, row)
            for shard in dict.fromkeys(row["shard"] for row in rows)
            for row in range(sum(other["shard"] == shard for other in rows))
        ]
        assert CatalogueTable(out).dataset == store.url

    def test_the_same_bytes_with_any_number_of_threads(self, tmp_path: Path) -> None:
        write_dataset(str(tmp_path / "dataset"), [{"ra": 1.0, "dec": 2.0}] * 30)
        written = set()
        for threads in (1, 5):
            out = tmp_path / "catalogue.parquet"
            write_catalogue(str(tmp_path / "dataset"), str(out), threads=threads, progress=io.StringIO())
            written.add(out.read_bytes())
        assert len(written) == 1

    def test_a_damaged_member(self, tmp_path: Path) -> None:
        url = str(tmp_path / "dataset")
        write_dataset(url, [{"ra": 1.25, "dec": 2.0}] * 5, samples_per_shard=100)
        tar = next(Path(url).glob("*.tar"))
        tar.write_bytes(tar.read_bytes().replace(b'"ra": 1.25', b'"ra": 9.25', 1))
        out = tmp_path / "catalogue.parquet"
        with pytest.raises(DataError, match=r"galaxy-.*json: bytes differ from the index"):
            write_catalogue(url, str(out), progress=io.StringIO())
        assert not out.exists()

    @pytest.mark.parametrize(("field", "value"), [("ra", "12:30:00"), ("targetid", 1.5), ("targetid", 2**63)])
    def test_metadata_of_a_wrong_kind(self, tmp_path: Path, field: str, value: object) -> None:
        url = str(tmp_path / "dataset")
        write_dataset(url, [{field: value}])
        with pytest.raises(DataError, match=field):
            write_catalogue(url, str(tmp_path / "catalogue.parquet"), progress=io.StringIO())


class TestTables:
    def test_fits(self, tmp_path: Path) -> None:
        rows = np.zeros(5, [("TARGETID", ">i8"), ("TARGET_RA", ">f8"), ("TARGET_DEC", ">f4"), ("SURVEY", "S4")])
        rows["TARGETID"] = 39633345008634465 + np.arange(5)
        rows["TARGET_RA"], rows["SURVEY"] = np.arange(5) / 8, b"sv3"
        fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(rows)]).writeto(tmp_path / "zcatalog.fits")
        zcatalog = CatalogueTable(tmp_path / "zcatalog.fits")
        assert (zcatalog.rows, zcatalog.dataset) == (5, None)
        write_positions(tmp_path / "images.parquet", [0.25, 0.5], [0.0, 0.0])
        assert (
            command(
                *("match", tmp_path / "images.parquet", tmp_path / "zcatalog.fits", tmp_path / "match.parquet"),
                *("--by", "position", "--radius", "1", "--position-b", "TARGET_RA", "TARGET_DEC"),
                *("--key-b", "SURVEY", "TARGETID"),
            )
            == 0
        )
        matched = pq.read_table(tmp_path / "match.parquet")
        assert matched["key_b"].to_pylist() == ["sv3-39633345008634467", "sv3-39633345008634469"]
        assert matched["index_b"].to_pylist() == [2, 4]

    def test_a_folder_of_files(self, tmp_path: Path) -> None:
        for part in range(3):
            (tmp_path / "sweep").mkdir(exist_ok=True)
            write_positions(tmp_path / "sweep" / f"{part}.parquet", [float(part)] * 2, [0.0, 1.0], prefix=f"{part}-")
        sweep = CatalogueTable(tmp_path / "sweep")
        pieces = list(sweep.batches(["key"]))
        assert [start for start, _ in pieces] == [0, 2, 4]
        assert pa.concat_tables([piece for _, piece in pieces])["key"].to_pylist()[3] == "1-1"

    def test_what_was_read_is_freed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(table_module, "ROWS_AT_ONCE", 2000)
        path = write_positions(tmp_path / "a.parquet", *random_positions(160_000, np.random.default_rng(1)))
        pq.write_table(pq.read_table(path), tmp_path / "groups.parquet", row_group_size=4000)
        held = []
        for _, piece in CatalogueTable(tmp_path / "groups.parquet").batches(["key", "ra", "dec"]):
            held.append(pa.total_allocated_bytes())
            del piece
        assert len(held) == 80
        assert max(held) - pa.total_allocated_bytes() < (tmp_path / "groups.parquet").stat().st_size / 4

    @pytest.mark.parametrize("name", ["absent.parquet", "text.parquet", "text.fits", "empty.parquet", "text.txt"])
    def test_files_that_are_no_table(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "text.parquet").write_text("no table")
        (tmp_path / "text.fits").write_text("no table")
        (tmp_path / "text.txt").write_text("no table")
        write_positions(tmp_path / "empty.parquet", np.empty(0), np.empty(0))
        with pytest.raises(DataError, match=name):
            CatalogueTable(tmp_path / name)


class TestByIdentifier:
    def match(self, folder: Path, a: CatalogueTable, b: CatalogueTable, **options: Any) -> list[dict[str, Any]]:
        columns = options.pop("columns", ["targetid"])
        self.description = match_by_identifier(
            a, b, str(folder / "m.parquet"), columns, columns, progress=io.StringIO(), **options
        )
        return pq.read_table(folder / "m.parquet").to_pylist()

    @pytest.mark.parametrize("rows_in_memory", [1 << 18, 20])
    def test_integers_and_their_text(self, tmp_path: Path, rows_in_memory: int) -> None:
        rng = random.Random(1)
        targets = [39633345008634465 + 4 * number for number in range(300)]
        other = [target + 4000 for target in targets[:50]] + targets[100:]
        rng.shuffle(other)
        a = table(tmp_path, "a", key=[f"a{target}" for target in targets], targetid=targets)
        b = table(tmp_path, "b", key=[f"b{target}" for target in other], targetid=[f" {target}" for target in other])
        rows = self.match(tmp_path, a, b, rows_in_memory=rows_in_memory)
        assert [row["key_a"] for row in rows] == [f"a{target}" for target in targets[100:]]
        assert all(row["key_a"][1:] == row["key_b"][1:] for row in rows)
        assert all(other[row["index_b"]] == targets[row["index_a"]] for row in rows)
        assert (self.description["unmatched_a"], self.description["unmatched_b"]) == (100, 50)
        assert all(row["separation_arcsec"] is None for row in rows)

    def test_several_columns(self, tmp_path: Path) -> None:
        a = table(tmp_path, "a", key=["x", "y"], brick=[1, 11], objid=[11, 1])
        b = table(tmp_path, "b", key=["u"], brick=[11], objid=[1])
        rows = self.match(tmp_path, a, b, columns=["brick", "objid"])
        assert [(row["key_a"], row["key_b"]) for row in rows] == [("y", "u")]

    def test_duplicates(self, tmp_path: Path) -> None:
        a = table(tmp_path, "a", key=list("wxyz"), targetid=[1, 2, 2, 3])
        b = table(tmp_path, "b", key=list("uv"), targetid=[2, 3])
        with pytest.raises(DataError, match="row 2: identifier 2 came before"):
            self.match(tmp_path, a, b)
        assert not (tmp_path / "m.parquet").exists()
        rows = self.match(tmp_path, a, b, duplicates="first")
        assert [(row["key_a"], row["key_b"]) for row in rows] == [("x", "u"), ("z", "v")]
        assert (self.description["duplicates_a"], self.description["unmatched_a"]) == (1, 1)

    def test_a_column_of_one_value(self, tmp_path: Path) -> None:
        a = table(tmp_path, "a", key=list(map(str, range(3000))), targetid=[0] * 3000)
        with pytest.raises(DataError, match="3,000 rows with the same few values"):
            self.match(tmp_path, a, a, duplicates="first", rows_in_memory=100)

    def test_missing_identifiers(self, tmp_path: Path) -> None:
        a = table(tmp_path, "a", key=list("xyz"), targetid=[1, None, 3])
        with pytest.raises(DataError, match="row 1: no identifier"):
            self.match(tmp_path, a, a)
        assert len(self.match(tmp_path, a, a, skip_missing=True)) == 2
        assert self.description["skipped_a"] == self.description["skipped_b"] == 1

    def test_floating_point_is_no_identifier(self, tmp_path: Path) -> None:
        a = table(tmp_path, "a", key=["x"], targetid=[39633345008634465.0])
        with pytest.raises(DataError, match="column targetid: double"):
            self.match(tmp_path, a, a)

    def test_missing_keys_and_columns(self, tmp_path: Path) -> None:
        a = table(tmp_path, "a", key=["x", None], targetid=[1, 2])
        with pytest.raises(DataError, match="row 1: no key"):
            self.match(tmp_path, a, a)
        with pytest.raises(DataError, match="column objid: absent"):
            self.match(tmp_path, a, a, columns=["objid"])
        with pytest.raises(DataError, match="column name: absent"):
            self.match(tmp_path, a, a, columns_a=Columns(key=("name",)))


class TestCommand:
    def test_from_datasets_to_a_match(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name, shift in (("images", 0.0), ("spectra", 0.3 / 3600)):
            write_dataset(str(tmp_path / name), [{"ra": float(n), "dec": shift, "targetid": n} for n in range(20)])
            out = str(tmp_path / f"{name}.parquet")
            assert command("catalogue", str(tmp_path / name), out, "--threads", "2", "--json") == 0
            assert json.loads(capsys.readouterr().out)["galaxies"] == 20
        match = (
            "match",
            str(tmp_path / "images.parquet"),
            str(tmp_path / "spectra.parquet"),
            str(tmp_path / "m.parquet"),
        )
        assert command(*match, "--by", "position", "--radius", "0.5", "--json") == 0
        described = json.loads(capsys.readouterr().out)
        assert (described["matched"], described["radius_arcsec"]) == (20, 0.5)
        assert described["dataset_a"] == Store(str(tmp_path / "images")).url
        by_position = pq.read_table(tmp_path / "m.parquet").drop_columns("separation_arcsec")
        assert by_position["shard_a"].null_count == by_position["row_b"].null_count == 0
        assert command(*match, "--by", "id", "--columns", "targetid") == 0
        assert "matched" in capsys.readouterr().out
        assert pq.read_table(tmp_path / "m.parquet").drop_columns("separation_arcsec").equals(by_position)

    @pytest.mark.parametrize(
        ("arguments", "field"),
        [
            (("--by", "position"), "--radius"),
            (("--by", "id"), "--columns"),
            (("--by", "id", "--columns", "x", "--radius", "1"), "--radius"),
            (("--by", "position", "--radius", "1", "--columns-b", "x"), "--columns-b"),
            (("--by", "position", "--radius", "1", "--epoch-a", "2016"), None),
            (("--by", "position", "--radius", "1", "--epoch-a", "20160"), "epoch"),
            (("--by", "position", "--radius", "1", "--epoch", "2016"), "--epoch"),
        ],
    )
    def test_options_that_do_not_fit(self, tmp_path: Path, arguments: tuple[str, ...], field: str | None) -> None:
        path = str(write_positions(tmp_path / "a.parquet", [1.0], [2.0]))
        everything = ("match", path, path, str(tmp_path / "m.parquet"), *arguments)
        if field is None:
            assert command(*everything) == 0
            return
        with pytest.raises(ConfigError) as error:
            command(*everything)
        assert error.value.field == field
        assert error.value.exit_code == 2

    def test_inputs_on_object_storage(self, tmp_path: Path) -> None:
        path = write_positions(tmp_path / "a.parquet", [1.0], [2.0])
        Store("memory:///catalogues")
        assert local_file(path.as_uri(), tmp_path / "fetched") == path
        with pytest.raises(UserError):
            local_file("memory:///nothing/a.parquet", tmp_path / "fetched")
