"""A dataset on a real S3 server: built, verified, damaged, and a build that the server's death stops."""

from __future__ import annotations

import io

import pytest

from astroclip_dist.data.manifest import read_manifest
from astroclip_dist.errors import StorageError
from astroclip_dist.store import Store
from shards.info import describe
from shards.verify import verify
from shards.writer import ShardWriter
from tests.system.conftest import RealObjectStore
from tests.system.test_store import use
from tests.unit.test_shards_writer import IMAGE, SPECTRUM, make_sample, write


@pytest.fixture(scope="module")
def bucket(object_store: RealObjectStore) -> str:
    return object_store.create_bucket("shards-tests")


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
