"""Resharding: the same members in other shards, without decoding, and never a damaged one."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from astroclip_dist.cli import main
from astroclip_dist.data.stored.manifest import ImageLayout, Manifest, Split, read_manifest
from astroclip_dist.errors import ConfigError, DataError
from astroclip_dist.store import Store
from shards.building.build import build
from shards.building.executors import Workers
from shards.checking.verify import verify
from shards.stored.reading import first_samples
from shards.stored.stored_datasets import StoredDatasets
from tests.random_survey import write_random_survey
from tests.toy_source import ToySource
from tests.unit.test_shards_build import build_toy, content
from tests.unit.test_shards_repair import flip
from tests.unit.test_shards_writer import assert_same


def reshard(datasets: list[Path], out: Path, **options: object) -> Manifest:
    options = {"contact_sheet": False, "progress": io.StringIO(), "workers": Workers(1), **options}
    return build(StoredDatasets(list(map(str, datasets))), str(out), **options)  # type: ignore[arg-type]


def tars(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in content(folder).items() if name.endswith((".tar", ".idx"))}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset") / "set"
    build_toy(folder)
    return folder


def test_another_shard_size_is_what_a_build_with_it_would_have_made(dataset: Path, tmp_path: Path) -> None:
    ours = reshard([dataset], tmp_path / "ours", samples_per_shard=25, split_fractions=read_splits(dataset))
    theirs = build_toy(tmp_path / "theirs", samples_per_shard=25)
    assert tars(tmp_path / "ours") == tars(tmp_path / "theirs")
    assert ours.shards == theirs.shards
    assert ours.band_statistics == theirs.band_statistics


def read_splits(dataset: Path) -> dict[Split, float]:
    return read_manifest(Store(dataset)).split_fractions


def test_other_splits_hold_the_same_samples(dataset: Path, tmp_path: Path) -> None:
    manifest = reshard(
        [dataset], tmp_path / "set", samples_per_shard=7, split_fractions={"train": 0.5, "val": 0.25, "test": 0.25}
    )
    old = first_samples(Store(dataset), read_manifest(Store(dataset)), 1000)
    new = {sample.key: sample for sample in first_samples(Store(tmp_path / "set"), manifest, 1000)}
    assert len(new) == len(old) == 100
    for sample in old:
        assert_same(sample, new[sample.key])
    assert 35 < manifest.counts["train"] < 65
    assert verify(str(tmp_path / "set"), io.StringIO()).sound
    assert manifest.source["1.kind"] == "toy"
    assert (manifest.source["kind"], manifest.source["1.samples"]) == ("reshard", 100)


def test_several_datasets_become_one(dataset: Path, tmp_path: Path) -> None:
    write_random_survey(str(tmp_path / "random"), 50)
    manifest = reshard([dataset, tmp_path / "random"], tmp_path / "set", split_fractions={"train": 1.0})
    assert manifest.counts["train"] == 150
    keys = [sample.key for sample in first_samples(Store(tmp_path / "set"), manifest, 1000)]
    assert keys[-50:] == [f"random-{number}" for number in range(50)]
    assert (manifest.source["1.kind"], manifest.source["2.kind"]) == ("toy", "random")


def test_galaxies_of_two_datasets_are_taken_once_if_asked(dataset: Path, tmp_path: Path) -> None:
    build_toy(tmp_path / "part", ToySource([60, 60]))
    with pytest.raises(DataError, match="came twice"):
        reshard([dataset, tmp_path / "part"], tmp_path / "set")
    manifest = reshard([dataset, tmp_path / "part"], tmp_path / "set", duplicates="first")
    assert sum(manifest.counts.values()) == 120
    assert manifest.source["duplicates_left_out"] == 100


def test_a_damaged_member_is_not_copied(tmp_path: Path) -> None:
    build_toy(tmp_path / "old")
    flip(tmp_path / "old" / "train-000001.tar")
    with pytest.raises(DataError, match=r"train-000001\.tar: toy-\d+\.image: bytes differ from the index"):
        reshard([tmp_path / "old"], tmp_path / "set", split_fractions={"train": 1.0})
    manifest = reshard([tmp_path / "old"], tmp_path / "set", split_fractions={"train": 1.0}, skip_bad=1)
    assert manifest.counts["train"] == 99
    assert json.loads((tmp_path / "set" / "skipped.jsonl").read_text())["key"].startswith("toy-")


def test_datasets_of_two_layouts_are_refused(dataset: Path, tmp_path: Path) -> None:
    write_random_survey(str(tmp_path / "other"), 5, image=ImageLayout(size=20))
    with pytest.raises(DataError, match=r"other: image: .*size=20.*That of the first dataset is"):
        StoredDatasets([str(dataset), str(tmp_path / "other")])
    with pytest.raises(ConfigError, match="the same twice"):
        StoredDatasets([str(dataset), f"{dataset}/"])


def test_the_command_keeps_the_splits_of_the_first_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_toy(tmp_path / "old", split_fractions={"train": 0.5, "val": 0.5})
    command = ["shards", "reshard", str(tmp_path / "old"), str(tmp_path / "new"), "--samples-per-shard", "50"]
    assert main([*command, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["split_fractions"] == {"train": 0.5, "val": 0.5, "test": 0.0}
    assert summary["samples"] == 100
    assert (tmp_path / "new" / "contact-sheet.png").exists()
