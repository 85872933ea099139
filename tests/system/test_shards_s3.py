"""Datasets on a real S3 server: built, killed and resumed, verified, damaged and repaired, and a server that dies."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import obstore
import pytest
from obstore.store import from_url

from astroclip_dist.data.stored.manifest import read_manifest
from astroclip_dist.errors import StorageError
from astroclip_dist.store import Store
from shards.building.executors import Workers
from shards.checking.menders import repair_from_copy
from shards.checking.verify import verify
from shards.showing.info import describe
from shards.writing.writer import ShardWriter
from tests.conftest import REPOSITORY
from tests.system.conftest import RealObjectStore
from tests.system.test_store import use
from tests.toy_source import ToySource
from tests.unit.test_shards_build import SIZES, build_toy, content
from tests.unit.test_shards_reshard import reshard, tars
from tests.unit.test_shards_writer import IMAGE, SPECTRUM, make_sample, write

QUIET = io.StringIO()


@pytest.fixture(scope="module")
def bucket(object_store: RealObjectStore) -> str:
    return object_store.create_bucket("shards-tests")


def stored(url: str) -> dict[str, bytes]:
    store = Store(url)
    return {found.name: store.read(found.name) for found in store.list()}


def tags(url: str) -> dict[str, tuple[str, str]]:
    """ETag and time of each object."""
    objects = from_url(url, client_options={"allow_http": True})
    return {
        str(entry["path"]): (str(entry["e_tag"]), str(entry["last_modified"]))
        for entry in obstore.list(objects).collect()
    }


def test_a_dataset_on_s3(object_store: RealObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, object_store.trainer)
    url = f"{bucket}/nested/set"
    manifest = write(url, [make_sample(number) for number in range(60)])
    assert read_manifest(Store(url)) == manifest
    assert describe(url)["samples"] == 60
    assert verify(url, io.StringIO()).sound
    store = Store(url)
    content = bytearray(store.read("train-000000.tar"))
    content[5000] ^= 1
    store.put("train-000000.tar", bytes(content))
    found = [str(fault) for fault in verify(url, io.StringIO()).faults]
    assert "train-000000.tar: its sha256 is not the manifest's" in found


def test_a_build_killed_on_s3_goes_on_and_gives_the_bytes_of_a_local_one(
    object_store: RealObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, object_store.trainer)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    url = f"{bucket}/killed"
    script = (
        "import sys; from tests.unit.test_shards_build import *\n"
        "build_toy(sys.argv[1], ToySource(SIZES, seconds=0.02))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", script, url], env=environment)
    store = Store(url)
    while len([found for found in store.list("receipts") if found.name != "receipts/build.json"]) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = tags(url)
    complete = {name.removeprefix("receipts/").removesuffix(".json") for name in before if name.startswith("receipts/")}
    assert "manifest.json" not in before
    build_toy(url)  # type: ignore[arg-type]
    build_toy(tmp_path / "local")
    assert stored(url) == content(tmp_path / "local")
    after = tags(url)
    kept = [name for name in before if name.rsplit(".", 1)[0] in complete]
    assert len(kept) >= 6
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert not list(tmp_path.glob("astroclip-*")), "a temporary file of the killed process is left"


def test_ray_workers_write_to_s3_and_repair_and_reshard_read_from_it(
    object_store: RealObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, object_store.trainer)
    url = f"{bucket}/by-ray"
    build_toy(url, ToySource(SIZES), Workers(2))  # type: ignore[arg-type]
    build_toy(tmp_path / "local")
    assert stored(url) == content(tmp_path / "local")
    store = Store(url)
    store.delete(["train-000001.tar", "val-000000.idx"])
    report = repair_from_copy(url, str(tmp_path / "local"), QUIET)
    assert (report.sound, report.mended) == (True, ["val-000000.idx", "train-000001.tar"])
    assert stored(url) == content(tmp_path / "local")
    reshard([url], f"{bucket}/resharded", samples_per_shard=25)  # type: ignore[list-item,arg-type]
    build_toy(tmp_path / "larger", samples_per_shard=25)
    again = {name: data for name, data in stored(f"{bucket}/resharded").items() if name != "manifest.json"}
    assert again == tars(tmp_path / "larger")


def test_a_dead_server_stops_the_build_and_no_manifest_is_there(
    object_store: RealObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, object_store.trainer)
    url = f"{bucket}/cut-off"

    def build_until_the_server_dies() -> None:
        with ShardWriter(url, IMAGE, SPECTRUM, True, {}, samples_per_shard=5) as writer:
            writer.store = Store(url, deadline_s=3.0)
            for number in range(60):
                if number == 30:
                    object_store.kill()
                writer.add(make_sample(number))
            writer.finish()

    try:
        with pytest.raises(StorageError):
            build_until_the_server_dies()
    finally:
        object_store.restart()
    names = {found.name for found in Store(url).list()}
    assert names
    assert "manifest.json" not in names
    manifest = write(url, [make_sample(number) for number in range(10)])
    expected = {f"{entry.name}.{kind}" for entry in manifest.shards for kind in ("tar", "idx")}
    assert {found.name for found in Store(url).list()} == {*expected, "manifest.json"}
