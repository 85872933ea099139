"""The store against a real S3 server and a real file system."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from astroclip_dist.errors import StorageError
from astroclip_dist.store import ChangedObjectError, CredentialsError, MissingObjectError, Store
from tests.system.conftest import RealObjectStore

AWS_VARIABLES = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN", "AWS_PROFILE"),
)


def use(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], **changes: str) -> None:
    """Make these the only AWS_* variables of the process."""
    for name in AWS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in {**environment, **changes}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def bucket(object_store: RealObjectStore) -> str:
    return object_store.create_bucket("store-tests")


@pytest.fixture(params=["s3", "file"])
def store(
    request: pytest.FixtureRequest,
    object_store: RealObjectStore,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Store:
    if request.param == "file":
        return Store(tmp_path / "a folder #1 with ü and 100%")
    use(monkeypatch, object_store.trainer)
    return Store(f"{bucket}/{tmp_path.name}/prefix")


def test_what_was_put_comes_back(store: Store) -> None:
    store.put("deep/er/object", b"0123456789")
    assert store.read("deep/er/object") == b"0123456789"
    assert bytes(store.read_range("deep/er/object", 3, 7)) == b"3456"
    assert store.exists("deep/er/object")
    assert not store.exists("deep/er")
    store.put("deep/er/object", b"new")
    assert store.read("deep/er/object") == b"new"
    store.put("empty", b"")
    assert store.read("empty") == b""


def test_put_sends_a_file_larger_than_one_part(store: Store, tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * 23
    (tmp_path / "big").write_bytes(content)
    store.put("big", tmp_path / "big")
    assert store.read("big") == content
    assert bytes(store.read_range("big", (5 << 20) - 1, (5 << 20) + 1)) == content[(5 << 20) - 1 : (5 << 20) + 1]


def test_list_is_sorted_deep_and_relative(store: Store) -> None:
    for name in ("b/2", "a", "b/1/x", "bb"):
        store.put(name, name.encode())
    assert store.list() == [("a", 1), ("b/1/x", 5), ("b/2", 3), ("bb", 2)]
    assert store.list("b") == [("b/1/x", 5), ("b/2", 3)]
    assert store.join("b").list() == [("1/x", 5), ("2", 3)]
    assert store.list("nothing") == []


def test_delete_is_silent_about_what_is_gone(store: Store) -> None:
    store.put("x", b"1")
    store.delete(["x", "never"])
    assert not store.exists("x")


def test_missing_objects_are_named(store: Store) -> None:
    with pytest.raises(MissingObjectError, match="shard-7"):
        store.read("shard-7")
    with pytest.raises(MissingObjectError, match="shard-7"):
        store.read_range("shard-7", 0, 1)


def test_range_beyond_the_end_is_an_error_not_short_data(store: Store) -> None:
    store.put("ten", b"0123456789")
    with pytest.raises(StorageError, match="ten"):
        store.read_range("ten", 5, 11)
    with pytest.raises(StorageError, match="ten"):
        store.read_range("ten", 20, 30)


def test_of_many_creators_one_wins(store: Store) -> None:
    gate = threading.Barrier(8)

    def create(number: int) -> bool:
        gate.wait()
        try:
            store.put("once", b"%d" % number, create_only=True)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert sum(won) == 1
    assert store.read("once") == b"%d" % won.index(True)


def test_of_many_who_replace_an_object_one_wins(
    object_store: RealObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, object_store.trainer)
    store = Store(f"{bucket}/{tmp_path.name}")
    first = store.put("counter", b"0", create_only=True)
    assert store.read_tagged("counter") == (b"0", first)
    gate = threading.Barrier(8)

    def replace(number: int) -> bool:
        gate.wait()
        try:
            store.replace("counter", b"%d" % number, first)
        except ChangedObjectError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(replace, range(1, 9)))
    assert sum(won) == 1
    data, tag = store.read_tagged("counter")
    assert data == b"%d" % (won.index(True) + 1)
    # The same bytes again, as a client that got no answer sends them.
    assert store.replace("counter", data, first) == tag
    store.delete(["counter"])
    with pytest.raises(ChangedObjectError):
        store.replace("counter", b"9", tag)


def test_a_store_survives_pickling(store: Store) -> None:
    store.put("x", b"1")
    assert pickle.loads(pickle.dumps(store)).read("x") == b"1"  # noqa: S301


def test_check_accepts_a_good_store(store: Store) -> None:
    store.check()


# --- S3 alone


@pytest.fixture
def trainer_url(object_store: RealObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    use(monkeypatch, object_store.trainer)
    return bucket


def test_wrong_secret_is_named_as_credentials_and_not_shown(
    object_store: RealObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, object_store.trainer, AWS_SECRET_ACCESS_KEY="not-the-secret-but-secret-too")
    with pytest.raises(CredentialsError, match="SignatureDoesNotMatch") as caught:
        Store(bucket).check()
    shown = [str(caught.value), str(caught.value.__cause__)]
    assert not any("not-the-secret" in text or object_store.trainer["AWS_ACCESS_KEY_ID"] in text for text in shown)
    with pytest.raises(CredentialsError):
        Store(bucket).list()


def test_unknown_key_is_named_as_credentials(
    object_store: RealObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, object_store.trainer, AWS_ACCESS_KEY_ID="stranger")
    with pytest.raises(CredentialsError, match="InvalidAccessKeyId"):
        Store(bucket).check()


def test_absent_credentials_are_named_quickly(
    object_store: RealObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, {"AWS_ENDPOINT_URL": object_store.endpoint})
    began = time.monotonic()
    with pytest.raises(CredentialsError, match=r"no credentials.*AWS_ACCESS_KEY_ID"):
        Store(bucket).check()
    assert time.monotonic() - began < 15


def test_read_only_identity_reads_and_may_not_write(
    object_store: RealObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, object_store.trainer)
    Store(bucket).put("shared", b"1")
    use(monkeypatch, object_store.reader)
    store = Store(bucket)
    assert store.read("shared") == b"1"
    with pytest.raises(CredentialsError, match="AccessDenied"):
        store.put("shared", b"2")
    assert store.read("shared") == b"1"


def test_missing_bucket_is_named(trainer_url: str) -> None:
    absent = Store("s3://no-such-bucket-here/x")
    # Only reads are asked: this server may make a bucket at the first write, others do not.
    for ask in (absent.check, lambda: absent.read("a")):
        with pytest.raises(StorageError, match="no such bucket"):
            ask()


def test_unreachable_endpoint_is_named_quickly(
    object_store: RealObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, object_store.trainer, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9"):
        Store(bucket).check()
    assert time.monotonic() - began < 10


def test_a_server_that_hangs_is_named_within_the_deadline(object_store: RealObjectStore, trainer_url: str) -> None:
    store = Store(trainer_url, deadline_s=4)
    store.put("x", b"1")
    process = psutil.Process(object_store.pid)
    process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(StorageError, match="store-tests"):
            store.read("x")
        assert time.monotonic() - began < 15
    finally:
        process.send_signal(signal.SIGCONT)
    assert store.read("x") == b"1"


def test_reads_wait_for_a_server_that_comes_back(object_store: RealObjectStore, trainer_url: str) -> None:
    store = Store(trainer_url, deadline_s=60)
    store.put("patient", b"still here")
    object_store.kill()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(store.read, "patient")
        time.sleep(1)
        assert not reading.done()
        object_store.restart()
        assert reading.result(timeout=60) == b"still here"


# --- the file system alone


def test_reading_a_mistyped_folder_creates_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "mistyped")
    assert store.list() == []
    assert not store.exists("manifest.json")
    assert not (tmp_path / "mistyped").exists()


def test_a_writer_killed_at_any_moment_leaves_old_or_new(tmp_path: Path) -> None:
    store = Store(tmp_path)
    size = 8 << 20
    store.put("pointer", b"a" * size)
    program = (
        "import sys; from astroclip_dist.store import Store; s = Store(sys.argv[1]); print('up', flush=True)\n"
        f"while True:\n for c in (b'b', b'a'): s.put('pointer', c * {size})"
    )
    for delay in (0.013, 0.029, 0.041):
        writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delay)
        writer.kill()
        writer.wait()
        content = store.read("pointer")
        assert len(content) == size
        assert len(set(content)) == 1
        assert store.list() == [("pointer", size)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this user may not mount a small file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_disk_is_named_and_leaves_nothing_behind(small_disk: Path) -> None:
    store = Store(small_disk)
    store.put("shard", b"1")
    with pytest.raises(StorageError, match="no space left"):
        store.put("shard", b"2" * (4 << 20))
    assert store.read("shard") == b"1"
    store.put("other", b"3" * (1 << 19))
    assert [path.name for path in small_disk.iterdir() if path.name not in ("shard", "other")] == []


def test_what_a_disk_refuses_is_no_matter_of_credentials(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"/folder: .*Is a directory.*\. Check the folder, its rights and its disk"):
        Store(tmp_path).put("folder", b"x")


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=os.strerror(errno.ENOTDIR)):
        Store(tmp_path / "file" / "folder").put("x", b"1")


def test_read_only_folder_is_named() -> None:
    with pytest.raises(StorageError, match="/proc/astroclip"):
        Store("/proc/astroclip").put("x", b"1")
