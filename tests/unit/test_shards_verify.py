"""Verification names what is wrong: which shard, which galaxy, which member."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from astroclip_dist.data.stored.index import decode_index, encode_index
from astroclip_dist.data.stored.manifest import Split, split_of
from astroclip_dist.errors import DataError
from shards.checking.verify import verify
from shards.sample import Sample
from shards.writing.open_shard import OpenShard
from tests.altered import agree, edit_manifest
from tests.unit.test_shards_writer import IMAGE, SPECTRUM, make_sample, write

QUIET = io.StringIO()
FRACTIONS: dict[Split, float] = {"train": 0.8, "val": 0.1, "test": 0.1}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write(tmp_path / "set", [make_sample(number) for number in range(60)])
    return tmp_path / "set"


def faults(dataset: Path) -> list[str]:
    return [str(fault) for fault in verify(str(dataset), QUIET).faults]


def replace_shard(dataset: Path, samples: list[Sample]) -> None:
    """Put other samples into the first train shard, with hashes that agree: only the contents can be wrong."""
    with OpenShard(dataset / "new.tar") as shard:
        for sample in samples:
            shard.add(sample)
        closed = shard.close()
        (dataset / "train-000000.tar").write_bytes(closed.path.read_bytes())
    (dataset / "train-000000.idx").write_bytes(closed.index)

    def change(manifest: dict[str, Any]) -> None:
        entry = next(entry for entry in manifest["shards"] if entry["name"] == "train-000000")
        manifest["counts"]["train"] += len(samples) - entry["samples"]
        entry["samples"] = len(samples)

    edit_manifest(dataset, change)
    agree(dataset, "train-000000")


def train_samples(count: int, start: int) -> list[Sample]:
    numbers = (n for n in range(start, start + 100) if split_of(f"galaxy-{n}", FRACTIONS) == "train")
    return [make_sample(n) for n, _ in zip(numbers, range(count), strict=False)]


def test_a_fresh_dataset_is_sound(dataset: Path) -> None:
    report = verify(str(dataset), QUIET)
    assert report.sound
    assert report.samples == 60
    assert report.bytes == sum(path.stat().st_size for path in dataset.glob("*.tar"))


@pytest.mark.parametrize("member", ["image", "spectrum", "ivar", "json"])
def test_a_flipped_byte_is_named_by_shard_galaxy_and_member(dataset: Path, member: str) -> None:
    index = decode_index((dataset / "train-000001.idx").read_bytes(), "index")
    tar = dataset / "train-000001.tar"
    content = bytearray(tar.read_bytes())
    table = index.members[member]
    content[int(table.offset[7]) + int(table.length[7]) - 3] ^= 0x10
    tar.write_bytes(content)
    assert faults(dataset) == [
        f"train-000001.tar: {index.keys[7]}.{member}: its crc32 is not the index's",
        "train-000001.tar: its sha256 is not the manifest's",
    ]


def test_a_flipped_byte_in_a_tar_header_is_found(dataset: Path) -> None:
    index = decode_index((dataset / "train-000000.idx").read_bytes(), "index")
    tar = dataset / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    content[int(index.members["image"].offset[4]) - 512 + 3] ^= 0x01
    tar.write_bytes(content)
    found = faults(dataset)
    assert any(index.keys[4] in fault and "image" in fault for fault in found)
    assert "train-000000.tar: its sha256 is not the manifest's" in found


def test_a_truncated_shard_is_found(dataset: Path) -> None:
    index = decode_index((dataset / "train-000000.idx").read_bytes(), "index")
    tar = dataset / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[: int(index.members["image"].offset[10]) + 100])
    text = "\n".join(faults(dataset))
    assert "the manifest says" in text
    assert f"{index.keys[10]}.image: the tar ends within it" in text


@pytest.mark.parametrize("kind", ["tar", "idx"])
def test_a_missing_file_is_named(dataset: Path, kind: str) -> None:
    (dataset / f"val-000000.{kind}").unlink()
    assert faults(dataset) == [f"val-000000.{kind}: missing"]


def test_a_damaged_index_is_named(dataset: Path) -> None:
    (dataset / "test-000000.idx").write_bytes(b"not an index")
    assert faults(dataset) == [
        "test-000000.idx: its sha256 is not the manifest's",
        "test-000000.idx: not a shard index",
    ]


def test_an_index_that_points_elsewhere_is_named(dataset: Path) -> None:
    path = dataset / "train-000000.idx"
    index = decode_index(path.read_bytes(), "index")
    rows = []
    for row, key in enumerate(index.keys):
        entry: dict[str, str | int | None] = {"key": key}
        for member, table in index.members.items():
            shift = 512 if (row, member) == (2, "spectrum") else 0
            entry |= {
                f"{member}_offset": int(table.offset[row]) + shift,
                f"{member}_length": int(table.length[row]),
                f"{member}_crc32": int(table.crc32[row]),
            }
        rows.append(entry)
    path.write_bytes(encode_index(rows))
    found = faults(dataset)
    assert "train-000000.idx: its sha256 is not the manifest's" in found
    assert any(f"{index.keys[2]}.spectrum" in fault and "the index says" in fault for fault in found)


def test_a_stray_shard_is_named(dataset: Path) -> None:
    (dataset / "train-000077.tar").write_bytes(b"")
    assert faults(dataset) == ["train-000077.tar: not in the manifest"]


def test_counts_that_do_not_add_up_are_named(dataset: Path) -> None:
    edit_manifest(dataset, lambda manifest: manifest["counts"].update(val=99))
    assert any("counts 99 val samples" in fault for fault in faults(dataset))


def test_a_key_that_is_there_twice_is_named(dataset: Path) -> None:
    again = decode_index((dataset / "train-000001.idx").read_bytes(), "index").keys[0]
    replace_shard(dataset, [*train_samples(3, 1000), make_sample(int(again.removeprefix("galaxy-")))])
    assert faults(dataset) == [
        f"train-000000.tar: {again}: this key is in the dataset twice",
        f"train-000001.tar: {again}: this key is in the dataset twice",
    ]


def test_a_galaxy_in_the_wrong_split_is_named(dataset: Path) -> None:
    number = next(n for n in range(1000, 2000) if split_of(f"galaxy-{n}", FRACTIONS) == "test")
    replace_shard(dataset, [make_sample(number)])
    assert faults(dataset) == [f"train-000000.tar: galaxy-{number}: does not belong to the split train"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"image": np.zeros((3, 8, 8), np.float32)}, "image: float32 (3, 8, 8), the manifest says"),
        ({"image": np.zeros(IMAGE.shape, np.float64)}, "image: float64"),
        ({"spectrum": np.full(SPECTRUM.shape, np.nan, np.float32)}, "spectrum: values that are not finite"),
    ],
)
def test_an_array_of_another_layout_is_named(dataset: Path, change: dict[str, np.ndarray], what: str) -> None:
    bad = train_samples(1, 1000)[0]
    for member, array in change.items():
        setattr(bad, member, array)
    replace_shard(dataset, [bad])
    found = faults(dataset)
    assert len(found) == 1
    assert f"{bad.key}.{what}" in found[0]


def test_pickled_objects_are_refused_not_loaded(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = io.BytesIO()
    np.save(sink, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    monkeypatch.setattr("shards.writing.open_shard._npy", lambda array: (sink.getvalue(),))
    bad = train_samples(1, 1000)[0]
    replace_shard(dataset, [bad])
    found = faults(dataset)
    assert f"train-000000.tar: {bad.key}.image: not a plain .npy array" in found[0]


def test_a_manifest_of_another_schema_is_refused(dataset: Path) -> None:
    edit_manifest(dataset, lambda manifest: manifest.update(schema_version=2))
    with pytest.raises(DataError, match=r"schema_version: 2.*build the dataset again"):
        verify(str(dataset), QUIET)


def test_a_folder_without_manifest_is_no_dataset(dataset: Path) -> None:
    (dataset / "manifest.json").unlink()
    with pytest.raises(DataError, match="build has not ended"):
        verify(str(dataset), QUIET)
