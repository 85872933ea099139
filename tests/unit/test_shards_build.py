"""A build: the same bytes however it is run and interrupted, what it leaves, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from astroclip_dist.data.stored.manifest import Manifest, read_manifest
from astroclip_dist.errors import ConfigError, DataError
from astroclip_dist.store import Store
from shards.building.build import build
from shards.building.executors import Workers
from shards.checking.verify import verify
from shards.stored.reading import first_samples
from tests.conftest import REPOSITORY
from tests.toy_source import ToySource
from tests.unit.test_shards_writer import assert_same

SIZES = [30, 5, 0, 45, 20]
HERE = Workers(1)


def build_toy(out: Path, source: ToySource | None = None, workers: Workers = HERE, **options: object) -> Manifest:
    options = {"samples_per_shard": 10, "progress": io.StringIO(), "contact_sheet": False, **options}
    return build(source or ToySource(SIZES), str(out), workers=workers, **options)  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def when_written(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each complete shard's files."""
    complete = {path.stem for path in (folder / "receipts").glob("*-*.json")}
    files = (path for path in folder.glob("*") if path.suffix in (".tar", ".idx") and path.stem in complete)
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "set"
    build_toy(folder)
    return folder


def test_a_dataset_holds_every_galaxy_once_and_nothing_else_lies_there(undisturbed: Path) -> None:
    manifest = read_manifest(Store(undisturbed))
    source = ToySource(SIZES)
    read = first_samples(Store(undisturbed), manifest, 1000)
    expected = [sample for partition in range(5) for sample in source.read(partition, range(SIZES[partition]))]
    assert len(read) == len(expected) == 100
    by_key = {sample.key: sample for sample in read}
    for sample in expected:
        assert not isinstance(sample, DataError)
        assert_same(sample, by_key[sample.key])
    assert verify(str(undisturbed), io.StringIO()).sound
    names = {f"{entry.name}.{kind}" for entry in manifest.shards for kind in ("tar", "idx")}
    assert set(content(undisturbed)) == {*names, "manifest.json"}
    assert not (undisturbed / "receipts").exists()


def test_two_workers_one_of_them_killed_give_the_same_bytes(undisturbed: Path, tmp_path: Path) -> None:
    source = ToySource(SIZES, kill_marker=tmp_path / "killed", kill_at=50)
    progress = io.StringIO()
    build_toy(tmp_path / "set", source, Workers(2), progress=progress)
    assert (tmp_path / "killed").exists()
    assert content(tmp_path / "set") == content(undisturbed)
    assert "shards in " in progress.getvalue()


def test_a_killed_build_goes_on_where_it_stopped(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    script = (
        "import sys; from pathlib import Path; from tests.unit.test_shards_build import *\n"
        "build_toy(Path(sys.argv[1]), ToySource(SIZES, seconds=0.01))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", script, str(out)], env=environment)
    while len(when_written(out)) < 6:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    complete = when_written(out)
    progress = io.StringIO()
    links = tmp_path / "links"
    links.mkdir()
    for name in complete:  # an inode is not used again while something points to it
        os.link(out / name, links / name)
    build_toy(out, progress=progress)
    assert content(out) == content(undisturbed)
    assert "of 11 shards are there already" in progress.getvalue()
    for name, (inode, written) in complete.items():
        found = (out / name).stat()
        assert (found.st_ino, found.st_mtime_ns) == (inode, written)


def interrupted(out: Path, **options: object) -> None:
    """A build that a bad galaxy in the last partition has stopped."""
    with pytest.raises(DataError, match="toy file 4 row 15: damaged"):
        build_toy(out, ToySource(SIZES, bad={95}), **options)


def test_an_error_leaves_complete_shards_and_says_how_to_go_on(undisturbed: Path, tmp_path: Path) -> None:
    progress = io.StringIO()
    interrupted(tmp_path / "set", progress=progress)
    assert "shards are complete in file://" in progress.getvalue()
    assert "the same command goes on from there" in progress.getvalue()
    complete = when_written(tmp_path / "set")
    assert complete
    build_toy(tmp_path / "set")
    assert content(tmp_path / "set") == content(undisturbed)


@pytest.mark.parametrize("harm", ["receipt", "tar", "idx", "truncated tar", "other receipt", "damaged receipt"])
def test_a_shard_that_is_not_as_its_receipt_says_is_made_again(undisturbed: Path, tmp_path: Path, harm: str) -> None:
    out = tmp_path / "set"
    interrupted(out)
    receipt = out / "receipts" / "train-000001.json"
    if harm == "receipt":
        receipt.unlink()
    elif harm == "damaged receipt":
        receipt.write_text(receipt.read_text()[:100])
    elif harm == "other receipt":
        receipt.write_text(json.dumps(json.loads(receipt.read_text()) | {"fingerprint": "0" * 64}))
    elif harm == "truncated tar":
        (out / "train-000001.tar").write_bytes((out / "train-000001.tar").read_bytes()[:-1024])
    else:
        (out / f"train-000001.{harm}").unlink()
    build_toy(out)
    assert content(out) == content(undisturbed)


def test_leftovers_of_killed_writers_go_and_other_peoples_files_stay(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    interrupted(out)
    (out / "train-000077.tar").write_bytes(b"of an earlier plan")
    (out / "train-000002.tar#123").write_bytes(b"of a killed worker")
    (out / "notes.txt").write_text("mine")
    build_toy(out)
    assert content(out) == {**content(undisturbed), "notes.txt": b"mine"}


def test_a_build_killed_at_its_very_end_is_complete(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    interrupted(out)
    receipts = content(out / "receipts")
    shutil.rmtree(out)
    shutil.copytree(undisturbed, out)
    (out / "receipts").mkdir()
    (out / "receipts" / "build.json").write_bytes(receipts["build.json"])
    assert build_toy(out) == read_manifest(Store(out))
    assert content(out) == content(undisturbed)
    with pytest.raises(DataError, match=r"manifest\.json: there already"):
        build_toy(out)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"samples_per_shard": 11}, "samples_per_shard = 10 has begun there, this one has 11"),
        ({"split_fractions": {"train": 1.0}}, "splits = "),
        ({"duplicates": "first"}, "duplicates = refuse"),
        ({"source": ToySource([100, 1])}, "source galaxies = 100 has begun there, this one has 101"),
    ],
)
def test_another_build_at_the_same_url_is_refused(tmp_path: Path, change: dict[str, object], difference: str) -> None:
    interrupted(tmp_path / "set")
    before = content(tmp_path / "set")
    with pytest.raises(DataError) as caught:
        build_toy(tmp_path / "set", **change)  # type: ignore[arg-type]
    assert difference in str(caught.value)
    assert content(tmp_path / "set") == before


def test_a_changed_input_is_noticed(tmp_path: Path) -> None:
    class Changing(ToySource):
        asked = 0

        def keys(self, partition: int) -> list[str]:
            self.asked += partition == 0
            return super().keys(partition)[: 30 if self.asked == 1 else 29]

    with pytest.raises(DataError, match="Its input changed during the build"):
        build_toy(tmp_path / "set", Changing(SIZES))

    class Renamed(ToySource):
        def read(self, partition: int, rows: object) -> object:  # type: ignore[override]
            for sample in super().read(partition, rows):  # type: ignore[arg-type]
                sample.key = f"{sample.key}-other"  # type: ignore[union-attr]
                yield sample

    with pytest.raises(DataError, match=r"gives toy-\d+-other instead of toy-"):
        build_toy(tmp_path / "other", Renamed(SIZES))


def test_bad_galaxies_are_left_out_and_listed_up_to_a_number(tmp_path: Path) -> None:
    source = ToySource(SIZES, bad={3, 50}, infinite={77})
    out = tmp_path / "set"
    with pytest.raises(DataError, match=r"3 galaxies cannot be used, --skip-bad allows 2"):
        build_toy(out, source, skip_bad=2)
    manifest = build_toy(out, source, skip_bad=3)  # goes on
    assert sum(manifest.counts.values()) == 97
    assert manifest.source["galaxies_skipped"] == 3
    lines = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert sorted((line["key"], line["partition"]) for line in lines) == [("toy-3", 0), ("toy-50", 3), ("toy-77", 3)]
    reasons = {line["key"]: line["reason"] for line in lines}
    assert reasons["toy-3"] == "toy file 0 row 3: damaged. Fetch it again."
    assert "not finite" in reasons["toy-77"]
    assert verify(str(out), io.StringIO()).sound
    build_toy(tmp_path / "at once", source, skip_bad=100)
    assert content(out) == content(tmp_path / "at once")


def test_a_shard_without_any_good_galaxy_is_left_out(tmp_path: Path) -> None:
    manifest = build_toy(
        tmp_path / "set", ToySource([30], bad=set(range(10, 20))), skip_bad=10, split_fractions={"train": 1.0}
    )
    assert [(entry.name, entry.samples) for entry in manifest.shards] == [("train-000000", 10), ("train-000002", 10)]
    assert verify(str(tmp_path / "set"), io.StringIO()).sound


def test_duplicates_taken_once_are_counted(tmp_path: Path) -> None:
    source = ToySource(SIZES, twice={40: 2, 41: 2})
    with pytest.raises(DataError, match="toy-2: key: came twice"):
        build_toy(tmp_path / "set", source)
    assert not (tmp_path / "set").exists()
    manifest = build_toy(tmp_path / "set", source, duplicates="first")
    assert manifest.source["duplicates_left_out"] == 2
    assert sum(manifest.counts.values()) == 98


def test_nobody_can_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--workers: 0"):
        Workers(0)
    with pytest.raises(ConfigError, match="Leave it out"):
        Workers(2, "auto")
    for address in ("127.0.0.1:1", "nonsense"):
        with pytest.raises(ConfigError, match=r"--ray-address: .*No Ray cluster there"):
            build_toy(tmp_path / "set", workers=Workers(ray_address=address))
        assert not (tmp_path / "set").exists()
