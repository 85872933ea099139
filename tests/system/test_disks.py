"""Full and read-only disks, and a clock that jumps: an error in words with nothing half-written, or no effect."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import describe
from astroclip_dist.train.mlflow_run import read_history
from tests.random_survey import write_random_survey
from tests.system.conftest import RealObjectStore
from tests.system.training_runs import CONFIG, STEPS, Command, event, events, result, saves, undisturbed, write_config

CLOCK = Path(__file__).with_name("jumping_clock")


class PrivateMounts:
    """What a test mounts, seen by nobody but the commands that it starts ``within``."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "infinity"])
        private = Path(f"/proc/{self._holder.pid}/ns/mnt")
        while self._holder.poll() is None and private.readlink() == Path("/proc/self/ns/mnt").readlink():
            time.sleep(0.01)
        self.within = ["nsenter", f"--mount={private}", "--"]

    def mount(self, *arguments: str | Path) -> None:
        subprocess.run([*self.within, "mount", *map(str, arguments)], check=True, timeout=10)

    def seen(self, path: Path) -> Path:
        """A path of theirs, from outside; not to be resolved."""
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


@pytest.fixture
def mounts() -> Iterator[PrivateMounts]:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("mounting a small disk takes root, and unshare(1)")
    mounts = PrivateMounts()
    yield mounts
    mounts.close()


@dataclass(frozen=True)
class Undisturbed:
    """A dataset, the result of a run on it that nothing disturbs, and the bytes of one of its checkpoints."""

    data: str
    result: dict[str, str]
    checkpoint_bytes: int


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{base / 'training.db'}")
        data, tensors = undisturbed(base)
        files = (base / "run" / "checkpoints" / f"step-{STEPS:09d}").iterdir()
        yield Undisturbed(data, tensors, sum(file.stat().st_size for file in files))


def refusal(command: Command) -> str:
    """What a command that failed with 1 said, which is no traceback, and no restart."""
    assert command.finish() == 1, command.output
    assert "Traceback" not in command.output
    assert "restarts left" not in command.output
    return command.output


@pytest.mark.slow
def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(
    mounts: PrivateMounts, reference: Undisturbed, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    # Room for two checkpoints, but not for the third, which is written before the first is removed.
    mounts.mount("-t", "tmpfs", "-o", f"size={int(2.5 * reference.checkpoint_bytes)}", "tmpfs", disk)
    config = write_config(tmp_path, reference.data, str(disk / "run"))
    said = refusal(Command(config, within=mounts.within))
    full = r"checkpoints/step-000000015/rank-0000\d\.safetensors: no space left on the device\. Free space or"
    assert re.search(full, said), said

    run = f"file://{mounts.seen(disk / 'run')}"
    assert re.search(full, event(run, "failed")[0]["error"])
    whole = [path.parent.name for path in mounts.seen(disk / "run").glob("checkpoints/*/manifest.json")]
    assert sorted(whole) == ["step-000000005", "step-000000010"]
    assert not list(mounts.seen(disk / "run").rglob("*#*")), "the copy aside of a write that failed"

    mounts.mount("-o", f"remount,size={int(4 * reference.checkpoint_bytes)}", disk)
    again = Command(config, within=mounts.within)
    assert again.finish() == 0, again.output
    assert [entry["step"] for entry in event(run, "resumed")] == [10]
    assert result(run) == reference.result


@pytest.mark.slow
def test_a_full_cache_is_named(
    mounts: PrivateMounts,
    object_store: RealObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    data = f"{object_store.create_bucket('disks')}/survey"
    sizes = [shard.bytes for shard in write_random_survey(data, 100).shards]
    cache = tmp_path / "cache"
    cache.mkdir()
    mounts.mount("-t", "tmpfs", "-o", f"size={max(sizes) * 2 // 3}", "tmpfs", cache)
    text = f"{CONFIG}reading: {{cache: {{folder: {cache}, limit: 1 GB}}}}\n"
    said = refusal(Command(write_config(tmp_path, data, str(tmp_path / "run"), text), within=mounts.within))
    full = f"reading.cache: {cache}: No space left on device. Lower reading.cache.limit, or free space."
    assert full in said
    assert full in event(tmp_path / "run", "failed")[0]["error"]
    # What passes for a copy is one, of the last shard, which is smaller; others are still named as what they are.
    assert {path.stat().st_size for path in mounts.seen(cache).glob("*.tar")} <= {min(sizes)}
    assert {path.suffix for path in mounts.seen(cache).iterdir()} <= {"", ".tar", ".partial"}


def test_a_run_folder_that_cannot_be_written_is_refused(mounts: PrivateMounts, tmp_path: Path) -> None:
    write_random_survey(str(tmp_path / "data"), 100)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounts.mount("-t", "tmpfs", "-o", "ro", "tmpfs", disk)
    config = write_config(tmp_path, str(tmp_path / "data"), str(disk / "run"))
    said = refusal(Command(config, within=mounts.within))
    assert re.fullmatch(rf"error: file://{disk}/run/\w+\.\w+: Read-only file system\. Choose a folder .*\n", said), said


@pytest.mark.slow
def test_a_run_that_was_there_before_its_disk_became_read_only_is_refused_and_goes_on_later(
    mounts: PrivateMounts, reference: Undisturbed, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = write_config(tmp_path, reference.data, str(run))
    command = Command(config, "health.max_restarts=0", within=mounts.within)
    command.kill_worker(0, at="step 7/30")
    assert command.finish() == 1
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    mounts.mount("--bind", "-o", "ro", run, run)
    said = refusal(Command(config, within=mounts.within))
    assert re.fullmatch(rf"error: file://{run}/\S+: Read-only file system\. Choose a folder .*\n", said), said
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before

    again = Command(config)
    assert again.finish() == 0, again.output
    assert result(run) == reference.result


@pytest.mark.slow
def test_a_disk_that_becomes_read_only_stops_the_run_which_goes_on_when_it_is_mended(
    mounts: PrivateMounts, reference: Undisturbed, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = write_config(tmp_path, reference.data, str(run))
    command = Command(config, within=mounts.within)
    command.wait_for("step 7/30")
    mounts.mount("--bind", "-o", "ro", run, run)
    said = refusal(command)
    stopped = rf"file://{run}/checkpoints/step-\d{{9}}/rank-0000\d\.safetensors: .*Read-only file system.*\. (\w+ )+"
    assert re.search(rf"rank \d  {stopped}", said), said
    assert re.search(rf'could not be written: .*"event": "failed", "error": "(rank 1 failed: )?{stopped}', said), said
    last = max(entry["step"] for entry in event(run, "saved"))
    assert [found.step for found in describe(Store(run)) if found.is_complete][-1] == last
    assert not list((run / "checkpoints").rglob("*#*")), "the copy aside of a write that failed"

    again = Command(config)
    assert again.finish() == 0, again.output
    assert [entry["step"] for entry in event(run, "resumed")] == [last]
    assert result(run) == reference.result
    assert [step for step, _ in read_history(Store(run), "loss")] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_old_checkpoints_that_cannot_be_removed_do_not_stop_a_run(
    mounts: PrivateMounts, reference: Undisturbed, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = Command(write_config(tmp_path, reference.data, str(run)), within=mounts.within)
    command.wait_for("step 7/30")
    first = run / "checkpoints" / "step-000000005"
    mounts.mount("--bind", "-o", "ro", first, first)
    assert command.finish() == 0, command.output
    assert [entry["in_a_row"] for entry in event(run, "unpruned")] == [1, 2, 3, 4]
    assert all("Read-only file system" in entry["error"] for entry in event(run, "unpruned"))
    assert [found.step for found in describe(Store(run)) if found.is_complete] == [5, STEPS - 5, STEPS]
    assert result(run) == reference.result


@pytest.mark.slow
def test_a_clock_that_jumps_by_hours_changes_nothing(reference: Undisturbed, tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = os.pathsep.join(filter(None, (str(CLOCK), os.environ.get("PYTHONPATH"))))
    command = Command(
        write_config(tmp_path, reference.data, str(run)), "checkpoint.interval=1 h", environment={"PYTHONPATH": path}
    )
    command.kill_worker(1, at="step 17/30")
    assert command.finish() == 0, command.output
    # No deadline was met, no save came too early, and the log's order is that of what happened.
    told = [entry for entry in events(run) if entry[0] not in ("failed", "restarting")]
    assert told == [("started", 0), *saves(5, 15), ("resumed", 15), *saves(20, STEPS), ("finished", STEPS)]
    times = [entry["time"] for kind in ("started", "saved", "resumed", "finished") for entry in event(run, kind)]
    assert times != sorted(times), "the clock did not jump"
    assert result(run) == reference.result
    assert [step for step, _ in read_history(Store(run), "loss")] == list(range(1, STEPS + 1))
