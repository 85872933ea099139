"""Repair: every damaged file comes back with the bytes of the manifest, or the report says why it does not."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from astroclip_dist.cli import main
from astroclip_dist.errors import DataError
from shards.building.executors import Workers
from shards.building.plan import Plan
from shards.checking.menders import repair_from_copy, repair_from_source
from shards.checking.repair import RepairReport, only_indexes, repair
from shards.checking.verify import verify
from shards.writing.dataset_folder import full_fractions
from tests.toy_source import ToySource
from tests.unit.test_shards_build import SIZES, build_toy, content

QUIET = io.StringIO()


def flip(path: Path, place: int = 5000) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def from_source(dataset: Path, source: ToySource | None = None, samples_per_shard: int = 10) -> RepairReport:
    plan = Plan(source or ToySource(SIZES), samples_per_shard, full_fractions(None))
    return repair_from_source(str(dataset), plan, workers=Workers(1), progress=QUIET)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "set"
    build_toy(folder)
    return folder


@pytest.fixture
def dataset(sound: Path, tmp_path: Path) -> Path:
    """A copy with a damaged, a truncated and a missing tar, and a damaged and a missing index."""
    shutil.copytree(sound, tmp_path / "set")
    flip(tmp_path / "set" / "train-000001.tar")
    truncated = tmp_path / "set" / "train-000002.tar"
    truncated.write_bytes(truncated.read_bytes()[:3000])
    (tmp_path / "set" / "val-000000.tar").unlink()
    flip(tmp_path / "set" / "val-000000.idx", 100)
    (tmp_path / "set" / "train-000003.idx").unlink()
    flip(tmp_path / "set" / "train-000004.idx", 300)
    return tmp_path / "set"


INDEXES = ["train-000003.idx", "train-000004.idx"]
OTHERS = ["train-000001.tar", "train-000002.tar", "val-000000.idx", "val-000000.tar"]


def test_the_source_brings_back_everything(dataset: Path, sound: Path) -> None:
    untouched = (dataset / "train-000000.tar").stat().st_mtime_ns
    report = from_source(dataset)
    assert report.sound
    assert report.mended == [*INDEXES, *OTHERS]
    assert content(dataset) == content(sound)
    assert (dataset / "train-000000.tar").stat().st_mtime_ns == untouched
    assert verify(str(dataset), QUIET).sound


def test_a_copy_brings_back_everything(dataset: Path, sound: Path) -> None:
    report = repair_from_copy(str(dataset), str(sound), QUIET)
    assert report.sound
    assert report.mended == [*INDEXES, *OTHERS]
    assert content(dataset) == content(sound)


def test_sound_tars_bring_back_their_indexes_alone(dataset: Path, sound: Path) -> None:
    report = repair(str(dataset), only_indexes, QUIET)
    assert report.mended == INDEXES
    assert sorted(report.broken) == OTHERS
    for name in INDEXES:
        assert (dataset / name).read_bytes() == (sound / name).read_bytes()


def damage_copy(name: str) -> Callable[[Path], None]:
    return lambda copy: flip(copy / name, 100)


@pytest.mark.parametrize(
    ("harm", "file", "why"),
    [
        (damage_copy("train-000001.tar"), "train-000001.tar", "in the copy its sha256 is not the manifest's"),
        (damage_copy("val-000000.idx"), "val-000000.idx", "in the copy its sha256 is not the manifest's"),
        (lambda copy: (copy / "val-000000.tar").unlink(), "val-000000.tar", "not in the copy"),
        (lambda copy: (copy / "val-000000.idx").unlink(), "val-000000.idx", "not in the copy"),
        (lambda copy: (copy / "train-000002.tar").write_bytes(b""), "train-000002.tar", "in the copy it has 0 bytes"),
    ],
)
def test_a_bad_copy_puts_nothing_and_is_named(
    dataset: Path, sound: Path, tmp_path: Path, harm: Callable[[Path], None], file: str, why: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sound, copy)
    harm(copy)
    before = (dataset / file).read_bytes() if (dataset / file).exists() else None
    report = repair_from_copy(str(dataset), str(copy), QUIET)
    assert list(report.broken) == [file]
    assert report.broken[file].startswith(why)
    assert ((dataset / file).read_bytes() if (dataset / file).exists() else None) == before
    assert not [name for name in content(dataset) if "#" in name]


def test_a_source_that_changed_puts_nothing(dataset: Path) -> None:
    before = content(dataset)
    report = from_source(dataset, ToySource(SIZES, bad=set(range(100))))
    assert sorted(report.broken) == OTHERS
    assert "damaged" in report.broken["train-000001.tar"]
    after = content(dataset)
    assert {name: after.get(name) for name in OTHERS} == {name: before.get(name) for name in OTHERS}

    class Brighter(ToySource):
        def read(self, partition: int, rows: object) -> object:  # type: ignore[override]
            for sample in super().read(partition, rows):  # type: ignore[arg-type]
                sample.image += 1  # type: ignore[union-attr]
                yield sample

    report = from_source(dataset, Brighter(SIZES))
    assert "the source gives 10 galaxies of other bytes now" in report.broken["train-000001.tar"]


def test_another_build_than_that_of_the_dataset_is_refused(dataset: Path) -> None:
    with pytest.raises(DataError, match="built with samples_per_shard = 10, not 11"):
        from_source(dataset, samples_per_shard=11)
    with pytest.raises(DataError, match="built with galaxies = 100, not 101"):
        from_source(dataset, ToySource([101]))


def test_a_sound_dataset_is_left_alone(sound: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in sound.iterdir()}
    assert from_source(sound).sound
    assert {path: path.stat().st_mtime_ns for path in sound.iterdir()} == before


def test_the_command(dataset: Path, sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "repair", "index", str(dataset)]) == 1
    out = capsys.readouterr().out
    assert "MENDED train-000003.idx" in out
    assert "BROKEN train-000001.tar: repair it from a copy or from the source" in out
    assert "2 files mended: 4 files broken" in out
    assert main(["shards", "repair", "copy", "--from", str(sound), str(dataset)]) == 0
    assert "4 files mended: sound" in capsys.readouterr().out


def test_the_command_builds_again_from_the_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["mock", "--galaxies", "3", "--seed", "5", "--splits", "1", "0", "0", str(tmp_path / "set")]
    assert main(["shards", "build", *arguments, "--no-contact-sheet"]) == 0
    before = content(tmp_path / "set")
    flip(tmp_path / "set" / "train-000000.tar")
    assert main(["shards", "repair", *arguments, "--json"]) == 0
    assert '"mended": ["train-000000.tar"]' in capsys.readouterr().out
    assert content(tmp_path / "set") == before
