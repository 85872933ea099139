"""Writing a dataset: what is written reads back, the same bytes every time, and nothing half-written stays."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from astroclip_dist.data.stored.index import decode_index
from astroclip_dist.data.stored.manifest import ImageLayout, Manifest, SpectrumLayout, read_manifest, split_of
from astroclip_dist.errors import ConfigError, DataError, StorageError
from astroclip_dist.store import Store
from shards.sample import Sample
from shards.stored.reading import first_samples
from shards.writing.open_shard import _npy, tar_header
from shards.writing.seen_keys import SeenKeys
from shards.writing.writer import ShardWriter

SUFFIXES = ("image.npy", "spectrum.npy", "ivar.npy", "json")
IMAGE, SPECTRUM = ImageLayout(size=16), SpectrumLayout(size=50)


def make_sample(number: int) -> Sample:
    random = np.random.default_rng(number)
    return Sample(
        key=f"galaxy-{number}",
        image=random.normal(0.1, 2.0, IMAGE.shape).astype(np.float32),
        spectrum=random.normal(size=SPECTRUM.shape).astype(np.float32),
        ivar=random.uniform(0, 4, SPECTRUM.shape).astype(np.float32),
        metadata={"ra": 10.0 + number, "redshift": 0.01 * number, "targetid": 39633345008634465 + number},
    )


def write(url: Path | str, samples: list[Sample], **options: object) -> Manifest:
    options.setdefault("samples_per_shard", 20)
    with ShardWriter(str(url), IMAGE, SPECTRUM, True, {"name": "test"}, **options) as writer:  # type: ignore[arg-type]
        for sample in samples:
            writer.add(sample)
        return writer.finish()


def assert_same(ours: Sample, theirs: Sample) -> None:
    assert ours.key == theirs.key
    assert ours.metadata == theirs.metadata
    for member in ("image", "spectrum", "ivar"):
        np.testing.assert_array_equal(getattr(ours, member), getattr(theirs, member))
        assert getattr(ours, member).dtype == getattr(theirs, member).dtype


def test_samples_read_back_through_the_index_as_they_went_in(tmp_path: Path) -> None:
    samples = [make_sample(number) for number in range(100)]
    manifest = write(tmp_path / "set", samples)
    assert read_manifest(Store(tmp_path / "set")) == manifest
    read = first_samples(Store(tmp_path / "set"), manifest, 1000)
    assert len(read) == 100
    by_key = {sample.key: sample for sample in samples}
    for sample in read:
        assert_same(sample, by_key[sample.key])


def test_samples_without_image_or_spectrum_read_back(tmp_path: Path) -> None:
    both, image, spectrum = make_sample(0), make_sample(1), make_sample(2)
    image.spectrum = image.ivar = None
    spectrum.image = None
    manifest = write(tmp_path / "set", [both, image, spectrum], split_fractions={"train": 1.0})
    read = first_samples(Store(tmp_path / "set"), manifest, 3)
    assert [(s.image is None, s.spectrum is None, s.ivar is None) for s in read] == [
        (False, False, False),
        (False, True, True),
        (True, False, False),
    ]


def test_manifest_counts_splits_and_statistics(tmp_path: Path) -> None:
    samples = [make_sample(number) for number in range(200)]
    manifest = write(tmp_path / "set", samples)
    expected = [split_of(sample.key, manifest.split_fractions) for sample in samples]
    assert manifest.counts == {split: expected.count(split) for split in ("train", "val", "test")}
    assert sum(manifest.counts.values()) == 200
    assert all(entry.samples <= 20 for entry in manifest.shards)
    train = np.stack([s.image for s, split in zip(samples, expected, strict=True) if split == "train"])
    for band, statistics in enumerate(manifest.band_statistics):
        assert statistics.band == "grz"[band]
        assert statistics.mean == pytest.approx(train[:, band].mean(dtype=np.float64), rel=1e-12)
        assert statistics.std == pytest.approx(train[:, band].std(dtype=np.float64), rel=1e-12)


def test_everything_can_go_into_train(tmp_path: Path) -> None:
    manifest = write(tmp_path / "set", [make_sample(n) for n in range(30)], split_fractions={"train": 1.0})
    assert manifest.counts == {"train": 30, "val": 0, "test": 0}


def test_webdataset_and_tar_read_the_same(tmp_path: Path) -> None:
    samples = {s.key: s for s in (make_sample(number) for number in range(40))}
    manifest = write(tmp_path / "set", list(samples.values()))
    seen = []
    for entry in manifest.shards:
        tar = tmp_path / "set" / f"{entry.name}.tar"
        keys = decode_index((tmp_path / "set" / f"{entry.name}.idx").read_bytes(), entry.name).keys
        names = subprocess.run(["tar", "tf", str(tar)], check=True, capture_output=True, text=True).stdout.split()
        assert names == [f"{key}.{suffix}" for key in keys for suffix in SUFFIXES]
        for sample in webdataset.WebDataset(str(tar), shardshuffle=False).decode():
            key = sample["__key__"]
            seen.append(key)
            np.testing.assert_array_equal(sample["image.npy"], samples[key].image)
            np.testing.assert_array_equal(sample["spectrum.npy"], samples[key].spectrum)
            np.testing.assert_array_equal(sample["ivar.npy"], samples[key].ivar)
            assert sample["json"] == samples[key].metadata
    assert sorted(seen) == sorted(samples)


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, [make_sample(number) for number in range(50)])
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert "manifest.json" in files
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@given(
    name=st.text("abcXYZ019_+-.", min_size=1, max_size=100),
    size=st.integers(0, 8**11 - 1),
)
def test_tar_headers_are_those_of_tarfile(name: str, size: int) -> None:
    theirs = tarfile.TarInfo(name)
    theirs.size = size
    assert tar_header(name, size) == theirs.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(3, 152, 152), (7781,)])
def test_arrays_are_stored_as_numpy_writes_them(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(dtype)
    for stored in (array, array[..., ::-1], np.asfortranarray(array)):
        theirs = io.BytesIO()
        np.lib.format.write_array(theirs, np.ascontiguousarray(stored), version=(1, 0), allow_pickle=False)
        assert b"".join(_npy(stored)) == theirs.getvalue()


@given(
    batches=st.lists(st.lists(st.integers(0, 60), max_size=30), max_size=30),
    longest=st.sampled_from([1, 4, 1 << 20]),
)
def test_a_key_is_new_once(batches: list[list[int]], longest: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shards.writing.seen_keys._LONGEST_RUN", longest)
        seen, expected = SeenKeys(), set()
        for batch in batches:
            new = seen.add(np.array(batch, np.uint64))
            for number, is_new in zip(batch, new, strict=True):
                assert is_new == (number not in expected)
                expected.add(number)


def with_field(**changes: object) -> Sample:
    sample = make_sample(1000)
    for name, value in changes.items():
        setattr(sample, name, value)
    return sample


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (with_field(key="a.b"), "dot"),
        (with_field(key="x" * 90), "at most 87 characters"),
        (with_field(key="galaxy-3"), "came twice"),
        (with_field(image=np.full(IMAGE.shape, np.nan, np.float32)), "not finite"),
        (with_field(image=np.zeros((3, 9, 9), np.float32)), "crop, resample"),
        (with_field(image=np.zeros(IMAGE.shape, ">f4")), "dtype"),
        (with_field(ivar=None), "ivar: missing"),
        (with_field(spectrum=None), "without a spectrum"),
        (with_field(metadata={"ebv": float("nan")}), "absent value"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_sample_is_refused_and_nothing_stays(tmp_path: Path, bad: Sample, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write(tmp_path / "set", [*(make_sample(number) for number in range(60)), bad])
    assert list((tmp_path / "set").iterdir()) == []


def test_leaving_without_finish_removes_what_was_written(tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path / "set"), IMAGE, SPECTRUM, True, {}, samples_per_shard=5) as writer:
        for number in range(60):
            writer.add(make_sample(number))
        assert list((tmp_path / "set").glob("*.tar"))
    assert list((tmp_path / "set").iterdir()) == []


def test_no_samples_are_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no samples"):
        write(tmp_path / "set", [])


def test_wrong_split_fractions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sum to 1"):
        write(tmp_path / "set", [make_sample(0)], split_fractions={"train": 0.8, "val": 0.1})


def test_a_dataset_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "set", [make_sample(0)])
    before = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    with pytest.raises(DataError, match="Choose another folder"):
        write(tmp_path / "set", [make_sample(1)])
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()} == before


def test_of_two_builds_at_one_url_only_one_claims_the_dataset(tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path / "set"), IMAGE, SPECTRUM, True, {}) as slow:
        slow.add(make_sample(0))
        write(tmp_path / "set", [make_sample(1)])
        with pytest.raises(DataError, match="another build"):
            slow.finish()
    assert (tmp_path / "set" / "manifest.json").exists()


def test_leftovers_of_a_killed_build_go_before_the_next(tmp_path: Path) -> None:
    script = (
        "import os, sys; from tests.unit.test_shards_writer import *\n"
        "with ShardWriter(sys.argv[1], IMAGE, SPECTRUM, True, {}, samples_per_shard=5) as writer:\n"
        "    for number in range(60): writer.add(make_sample(number))\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "set")], check=False, env=_environment(tmp_path)
    )
    assert killed.returncode == -9
    leftovers = {path.name for path in (tmp_path / "set").iterdir()}
    assert "train-000005.tar" in leftovers
    assert "manifest.json" not in leftovers
    (tmp_path / "set" / "train-000009.tar#1").write_bytes(b"an interrupted write")
    (tmp_path / "set" / "notes.txt").write_text("mine")
    manifest = write(tmp_path / "set", [make_sample(number) for number in range(10)])
    expected = {f"{entry.name}.{kind}" for entry in manifest.shards for kind in ("tar", "idx")}
    assert {path.name for path in (tmp_path / "set").iterdir()} == {*expected, "manifest.json", "notes.txt"}


def test_a_full_local_disk_is_named_and_nothing_looks_complete(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys; from tests.unit.test_shards_writer import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: write(sys.argv[1], [make_sample(n) for n in range(400)], samples_per_shard=100)\n"
        "except StorageError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "set")],
        check=True,
        capture_output=True,
        text=True,
        env=_environment(tmp_path),
    )
    assert f"{tmp_path / 'set'}: File too large. Free space there" in done.stdout
    assert not (tmp_path / "set").exists() or list((tmp_path / "set").iterdir()) == []
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_target_disk_is_named_and_nothing_stays_on_it(small_disk: Path) -> None:
    with pytest.raises(StorageError, match="Free space"):
        write(small_disk / "set", [make_sample(number) for number in range(400)], samples_per_shard=30)
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []


def _environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "scratch").mkdir(exist_ok=True)
    return {**os.environ, "TMPDIR": str(tmp_path / "scratch"), "PYTHONPATH": str(Path(__file__).parents[2])}
