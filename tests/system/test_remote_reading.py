"""Reading from a real S3 server: memory within its budget, the disk cache under its limit, damage on the way mended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from astroclip_dist.config.run import Cache, Reading
from astroclip_dist.data.ordering.mixture import order_of
from astroclip_dist.data.ordering.order import Cursor
from astroclip_dist.data.reading.quarantine import Quarantine
from astroclip_dist.data.reading.shard_bytes import Fetcher
from astroclip_dist.data.reading.shard_cache import ShardCache
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.streaming import stream as stream_module
from astroclip_dist.data.streaming.room import window_bytes
from astroclip_dist.data.streaming.stream import Batch, Stream
from astroclip_dist.data.streaming.window_budget import WindowBudget
from astroclip_dist.errors import ConfigError, DataError, StorageError
from astroclip_dist.store import Store
from tests.random_survey import random_sample, write_random_survey
from tests.system.conftest import RealObjectStore
from tests.system.test_store import use

SAMPLES, LANES, GLOBAL_BATCH = 400, 4, 40
MEMBERS = ("image", "spectrum")


@pytest.fixture(scope="module")
def bucket(object_store: RealObjectStore) -> str:
    return object_store.create_bucket("reading-tests")


@pytest.fixture
def url(object_store: RealObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    use(monkeypatch, object_store.trainer)
    url = f"{bucket}/survey"
    if not Store(url).exists("manifest.json"):
        write_random_survey(url, SAMPLES, samples_per_shard=20)
    return url


def open_stream(url: str, reading: Reading, *, quarantine: Quarantine | None = None) -> Stream:
    dataset = Dataset.open([url], ["train"])
    order = order_of(dataset, seed=3, lanes=LANES, global_batch=GLOBAL_BATCH, window_shards=2)
    return Stream(
        dataset, order, MEMBERS, rank=0, world_size=1, cursor=Cursor(), reading=reading, quarantine=quarantine
    )


def read(url: str, reading: Reading, steps: int = 20) -> list[Batch]:
    with open_stream(url, reading) as stream:
        return list(islice(stream, steps))


def check_contents(batches: list[Batch]) -> None:
    for batch in batches:
        for at, key in enumerate(batch.keys):
            assert np.array_equal(batch.members["image"][at].numpy(), random_sample(key).image)
            assert np.array_equal(batch.members["spectrum"][at].numpy(), random_sample(key).spectrum)


def test_memory_stays_within_its_budget(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset.open([url], ["train"])
    shard = max(shard.entry.bytes for shard in dataset.shards)
    batches = 5 * GLOBAL_BATCH * 4 * (3 * 24 * 24 + 120)
    least = batches + LANES * 2 * shard
    held, most, lock = 0, 0, threading.Lock()

    class Watched(WindowBudget):
        def take(self, size: int) -> bool:
            nonlocal held, most
            taken = super().take(size)
            with lock:
                held += size if taken else 0
                most = max(most, held)
            return taken

        def give_back(self, size: int) -> None:
            nonlocal held
            with lock:
                held -= size
            super().give_back(size)

    monkeypatch.setattr(stream_module, "WindowBudget", Watched)
    tight = read(url, Reading(memory=least))
    assert LANES * 2 * shard * 0.5 < most <= LANES * 2 * shard
    check_contents(tight)
    assert [batch.keys for batch in read(url, Reading())] == [batch.keys for batch in tight]
    with pytest.raises(ConfigError, match=r"reading\.memory.*window of each of its 4 lanes"):
        read(url, Reading(memory=least - 1))


def test_window_bytes_cover_what_is_fetched(url: str) -> None:
    dataset = Dataset.open([url], ["train"])
    order = order_of(dataset, seed=3, lanes=LANES, global_batch=GLOBAL_BATCH, window_shards=2)
    for window in order.components[0].windows(0, 1):
        spans = 0
        for piece in window.pieces:
            first, last = dataset.shards[piece.shard].read_index().span(piece.start, piece.stop, MEMBERS)
            spans += last - first
        assert 0.9 * spans < window_bytes(dataset.shards, window) < 1.5 * spans + 2_000


def test_cache_keeps_shards_within_its_limit_and_serves_them_again(url: str, tmp_path: Path) -> None:
    dataset = Dataset.open([url], ["train"])
    shard = max(shard.entry.bytes for shard in dataset.shards)
    everything = sum(shard.entry.bytes for shard in dataset.shards)
    roomy = Reading(cache=Cache(folder=str(tmp_path / "roomy"), limit=2 * everything))
    batches = read(url, roomy)
    check_contents(batches)
    copies = {path.name: path.stat().st_ino for path in (tmp_path / "roomy").glob("*.tar")}
    assert len(copies) == len(dataset.shards)
    again = read(url, roomy)
    assert [batch.keys for batch in again] == [batch.keys for batch in batches]
    assert {path.name: path.stat().st_ino for path in (tmp_path / "roomy").glob("*.tar")} == copies
    limit = 2 * LANES * 2 * shard
    tight = Reading(cache=Cache(folder=str(tmp_path / "tight"), limit=limit))
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            sizes = []
            for path in (tmp_path / "tight").glob("*.*"):
                try:
                    sizes.append(path.stat().st_size)
                except FileNotFoundError:
                    continue
            most = max(most, sum(sizes))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert [batch.keys for batch in read(url, tight)] == [batch.keys for batch in batches]
    finally:
        done.set()
        watcher.join()
    assert 0 < most <= limit + shard  # a file may be counted under its old and its new name
    with pytest.raises(ConfigError, match=r"reading\.cache\.limit"):
        read(url, Reading(cache=Cache(folder=str(tmp_path / "tight"), limit=limit - 1)))


def test_longest_unused_copy_goes_first_and_copies_in_use_stay(url: str, tmp_path: Path) -> None:
    shards = Dataset.open([url], ["train"]).shards[:4]
    size = max(shard.entry.bytes for shard in shards)
    cache = ShardCache(tmp_path, 3 * size, Fetcher(2), wait_for_room_s=0.3)
    for shard in shards[:3]:
        cache.open(shard)
        time.sleep(0.02)
    first = cache.open(shards[0])  # used again, and held
    before = set(tmp_path.glob("*.tar"))
    cache.open(shards[3])
    gone = before - set(tmp_path.glob("*.tar"))
    assert len(gone) == 1
    held = [first, *(cache.open(shard) for shard in shards[:3])]
    with pytest.raises(StorageError, match="no room"):
        cache.open(shards[3])
    del held
    first.discard()
    cache.open(shards[3])


def test_a_damaged_copy_is_fetched_again(url: str, tmp_path: Path) -> None:
    reading = Reading(cache=Cache(folder=str(tmp_path), limit=10**9))
    sound = read(url, reading)
    for path in tmp_path.glob("*.tar"):
        data = bytearray(path.read_bytes())
        data[1500:1600] = bytes(100)
        path.write_bytes(data)
    quarantine = Quarantine()
    with open_stream(url, reading, quarantine=quarantine) as stream:
        batches = list(islice(stream, 20))
    assert [batch.keys for batch in batches] == [batch.keys for batch in sound]
    check_contents(batches)
    assert not len(quarantine)
    short = next(tmp_path.glob("*.tar"))
    os.truncate(short, 1000)
    assert [batch.keys for batch in read(url, reading)] == [batch.keys for batch in sound]


def test_a_dataset_built_anew_at_the_same_url_does_not_meet_old_copies(
    object_store: RealObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, object_store.trainer)
    url = f"{bucket}/rebuilt"
    reading = Reading(cache=Cache(folder=str(tmp_path), limit=10**9))
    for samples in (200, 240):
        Store(url).delete(found.name for found in Store(url).list())
        write_random_survey(url, samples, samples_per_shard=10)
        check_contents(read(url, reading, steps=5))


READER = """
import sys
from itertools import islice
from astroclip_dist.config.run import Cache, Reading
from tests.system.test_remote_reading import check_contents, open_stream
url, folder, limit, steps = sys.argv[1:]
with open_stream(url, Reading(cache=Cache(folder=folder, limit=int(limit)))) as stream:
    for batch in islice(stream, int(steps)):
        check_contents([batch])
print("read")
"""


def start_reader(url: str, folder: Path, limit: int, steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", READER, url, str(folder), str(limit), str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_share_a_cache_and_one_that_is_killed_leaves_no_trace(url: str, tmp_path: Path) -> None:
    shards = Dataset.open([url], ["train"]).shards
    limit = 4 * LANES * 2 * max(shard.entry.bytes for shard in shards)
    readers = [start_reader(url, tmp_path, limit, 12) for _ in range(2)]
    victim = start_reader(url, tmp_path, limit, 10_000)
    while not list(tmp_path.glob("*.tar")):
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    (tmp_path / f"{'0' * 64}.partial").write_bytes(bytes(1000))  # as a killed download leaves it
    for reader in readers:
        output, _ = reader.communicate(timeout=120)
        assert output.strip() == "read"
    assert sum(path.stat().st_size for path in tmp_path.glob("*.*")) <= limit


def test_a_cache_folder_that_cannot_be_written_is_named(url: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"reading\.cache\.folder"):
        read(url, Reading(cache=Cache(folder=str(tmp_path / "file" / "cache"), limit=10**9)))


def test_missing_objects_are_quarantined_and_named_without(
    object_store: RealObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, object_store.trainer)
    url = f"{bucket}/holes"
    write_random_survey(url, SAMPLES, samples_per_shard=20)
    Store(url).delete(["train-000003.tar", "train-000007.idx"])
    quarantine = Quarantine()
    with open_stream(url, Reading(), quarantine=quarantine) as stream:
        check_contents(list(islice(stream, 20)))
    assert quarantine.samples == 40
    with pytest.raises(DataError, match=r"rank 0, lane \d, s3://.*train-00000[37].*missing"):
        read(url, Reading())
