"""Saves in the background: what is taken, when it is complete, how it fails, and how it is given up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist

from astroclip_dist.config.run import Checkpoint
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.data.ordering.order import Cursor
from astroclip_dist.errors import StorageError
from astroclip_dist.parallel.process_group import Ranks, join, leave
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import (
    Checkpointer,
    Progress,
    complete_checkpoints,
    describe,
    read_checkpoint_manifest,
    resolve_checkpoint,
    restore,
    verify,
)
from astroclip_dist.train.checkpoint.errors_of_ranks import gather_or_raise
from astroclip_dist.train.checkpoint.file_image import unpack
from tests.rank_pool import RankPool
from tests.small_engine import fill, small_engine
from tests.until import until

STEPS = RunSteps(total=100, per_epoch=7, global_batch=16)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """A group of this process alone."""
    ranks = join("cpu", 60.0)
    yield ranks
    leave(ranks)


class GatedStore(Store):
    """A storage that is slow to take the files of the ranks: they are written when the gate opens."""

    gate: ClassVar[threading.Event]

    def join(self, name: str) -> Store:
        return GatedStore(f"{self.url}/{name}")

    def put(self, name: str, *arguments: Any, **options: Any) -> Any:
        if name.endswith(".safetensors"):
            assert self.gate.wait(60)
        return super().put(name, *arguments, **options)


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[GatedStore]:
    GatedStore.gate = threading.Event()
    yield GatedStore(tmp_path)
    GatedStore.gate.set()


class KeptStore(Store):
    """A storage that refuses to remove what is in one folder, and removes anything only while the gate is open."""

    refused: ClassVar[str | None]
    gate: ClassVar[threading.Event]

    def join(self, name: str) -> Store:
        return KeptStore(f"{self.url}/{name}")

    def delete(self, names: Iterable[str]) -> None:
        names = list(names)
        if names and self.refused and self.url.endswith(self.refused):
            raise StorageError(self.locate(names[0]), "access refused", "Check the rights.")
        if names:
            assert self.gate.wait(60)
        super().delete(names)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[KeptStore]:
    KeptStore.gate, KeptStore.refused = threading.Event(), None
    KeptStore.gate.set()
    yield KeptStore(tmp_path)
    KeptStore.gate.set()


def test_old_checkpoints_that_cannot_be_removed_are_told_each_time_and_end_no_run(
    kept: KeptStore, ranks: Ranks, caplog: pytest.LogCaptureFixture
) -> None:
    checkpointer = Checkpointer(kept, small_engine(ranks), {}, Checkpoint(background=False, keep_last=1), STEPS)
    told, left = [], []
    for step, refused in ((1, None), (2, "step-000000001"), (3, "step-000000001"), (4, None)):
        KeptStore.refused = refused
        saved = checkpointer.begin(Progress(step))
        assert saved is not None
        assert resolve_checkpoint(kept.url)[1].url.endswith(saved.name)
        told.append(saved.unpruned)
        left.append([found.step for found in describe(kept) if found.is_complete])
    refused = f"{kept.url}/checkpoints/step-000000001/manifest.json: access refused. Check the rights."
    assert told == [None, refused, refused, None]
    assert f"step-000000003 is complete, but old checkpoints could not be removed: {refused}" in caplog.text
    assert left == [[1], [1, 2], [1, 3], [4]], "the others go all the same, and that one as soon as it can"


def test_a_save_counts_although_there_is_no_time_to_remove_old_ones(kept: KeptStore, ranks: Ranks) -> None:
    checkpointer = Checkpointer(kept, small_engine(ranks), {}, Checkpoint(keep_last=1), STEPS)
    checkpointer.begin(Progress(5))
    checkpointer.finish(None)
    KeptStore.gate.clear()
    checkpointer.begin(Progress(10))
    settled(checkpointer)
    checkpointer.advance(saving=False)
    until(lambda: resolve_checkpoint(kept.url)[1].url.endswith("step-000000010"))
    saved = checkpointer.finish(time.monotonic() + 0.1)
    assert saved is not None
    assert (saved.name, saved.unpruned) == ("checkpoints/step-000000010", "there was no time for it")


def settled(checkpointer: Checkpointer) -> None:
    """Until this rank writes no more."""
    until = time.monotonic() + 60
    while checkpointer.saving and time.monotonic() < until:
        time.sleep(0.002)
    assert not checkpointer.saving


def test_training_goes_on_while_a_save_is_written(gated: GatedStore, ranks: Ranks) -> None:
    engine = small_engine(ranks)
    checkpointer = Checkpointer(gated, engine, {}, Checkpoint(), STEPS)
    fill(engine, 5)
    progress = Progress(5, Cursor(0, 5))
    assert checkpointer.begin(progress) is None
    assert checkpointer.saving
    fill(engine, 6)
    assert checkpointer.advance(saving=True) is None
    assert describe(gated) == []
    gated.gate.set()
    settled(checkpointer)
    # The files are written; now the first rank writes the manifest.
    assert checkpointer.advance(saving=False) is None
    settled(checkpointer)
    saved = checkpointer.advance(saving=False)
    assert saved is not None
    assert (saved.name, saved.progress) == ("checkpoints/step-000000005", progress)
    assert checkpointer.advance(saving=False) is None
    assert checkpointer.finish(None) is None
    assert verify(gated.join(saved.name)) == []
    assert restore(gated, engine) == progress
    assert all(bool(torch.all(tensor == 5)) for tensor in engine.state().values())


def test_a_save_waits_for_the_one_before_and_tells_of_it(
    gated: GatedStore, ranks: Ranks, caplog: pytest.LogCaptureFixture
) -> None:
    checkpointer = Checkpointer(gated, small_engine(ranks), {}, Checkpoint(), STEPS)
    checkpointer.begin(Progress(5))
    threading.Timer(0.2, gated.gate.set).start()
    with caplog.at_level(logging.INFO):
        before = checkpointer.begin(Progress(10))
    assert before is not None
    assert before.progress.step == 5
    assert "s for checkpoints/step-000000005: saves take longer than what lies between them" in caplog.text
    last = checkpointer.finish(None)
    assert last is not None
    assert last.progress.step == 10
    assert [found.step for found in describe(gated) if found.is_complete] == [5, 10]


def test_what_is_not_written_at_the_deadline_is_given_up(
    gated: GatedStore, ranks: Ranks, caplog: pytest.LogCaptureFixture
) -> None:
    gated.gate.set()
    engine = small_engine(ranks)
    checkpointer = Checkpointer(gated, engine, {}, Checkpoint(), STEPS)
    fill(engine, 5)
    checkpointer.begin(Progress(5))
    assert checkpointer.finish(None) is not None
    gated.gate.clear()
    checkpointer.begin(Progress(10))
    began = time.monotonic()
    assert checkpointer.finish(began + 0.1) is None
    assert time.monotonic() - began < 10
    assert "step-000000010: health.preemption_deadline is over, it is given up: the one before counts" in caplog.text
    # Written later it is no checkpoint either: nobody says that it is complete.
    gated.gate.set()
    assert resolve_checkpoint(gated.url)[1].url.endswith("step-000000005")
    assert restore(gated, engine) == Progress(5)


@pytest.mark.parametrize("background", [True, False])
def test_asked_to_leave_all_saves_together_have_the_deadline(background: bool, gated: GatedStore, ranks: Ranks) -> None:
    checkpointer = Checkpointer(gated, small_engine(ranks), {}, Checkpoint(background=background), STEPS)
    began = time.monotonic()
    checkpointer.begin(Progress(5), began + 0.2)
    assert checkpointer.begin(Progress(6), began + 0.2) is None
    assert checkpointer.finish(began + 0.2) is None
    assert time.monotonic() - began < 10
    assert not complete_checkpoints(gated)


def test_without_background_a_save_is_complete_at_once(tmp_path: Path, ranks: Ranks) -> None:
    run = Store(tmp_path)
    checkpointer = Checkpointer(run, small_engine(ranks), {}, Checkpoint(background=False), STEPS)
    saved = checkpointer.begin(Progress(5))
    assert saved is not None
    assert complete_checkpoints(run) == [saved.name]
    assert not checkpointer.saving


def test_when_to_save(tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    config = Checkpoint(interval=60.0, background=False)
    checkpointer = Checkpointer(Store(tmp_path), small_engine(ranks), {}, config, STEPS)
    assert not Checkpointer(Store(tmp_path), small_engine(ranks), {}, Checkpoint(), STEPS).is_time
    now += 61.0
    assert checkpointer.is_time
    checkpointer.begin(Progress(1))
    # Counted from the beginning of the save, by a clock that nobody can set.
    assert not checkpointer.is_time
    now += 61.0
    assert checkpointer.is_time
    assert checkpointer.due(Progress(3), is_time=True)
    assert not checkpointer.due(Progress(3), is_time=False)
    assert checkpointer.due(Progress(100), is_time=False), "not at the end"


def test_the_manifest_says_where_it_comes_from(tmp_path: Path, ranks: Ranks) -> None:
    run = Store(tmp_path)
    run.put("tracking.json", b'{"run_id": "abc", "tracking_uri": "sqlite:///x"}')
    checkpointer = Checkpointer(run, small_engine(ranks), {}, Checkpoint(background=False), STEPS)
    for losses, score in (([3.0, float("nan"), 1.0], 2.0), ([5.0], 5.0), ([], None)):
        for loss in losses:
            checkpointer.observe(loss)
        saved = checkpointer.begin(Progress(7, Cursor(1, 0), skipped_steps=1))
        assert saved is not None
        manifest = read_checkpoint_manifest(run.join(saved.name))
        assert manifest["score"] == score
    assert (manifest["step"], manifest["skipped_steps"], manifest["steps_per_epoch"]) == (7, 1, 7)
    assert (manifest["mlflow_run_id"], manifest["world_size"]) == ("abc", 1)


def test_what_is_called_before_a_checkpoint_is_the_newest(tmp_path: Path, ranks: Ranks) -> None:
    run, seen = Store(tmp_path), []
    checkpointer = Checkpointer(run, small_engine(ranks), {}, Checkpoint(background=False), STEPS)
    checkpointer.before_newest(lambda: seen.append(complete_checkpoints(run)))
    for step in (1, 2):
        checkpointer.begin(Progress(step))
    assert seen == [[], ["checkpoints/step-000000001"]]


def test_the_ranks_tell_each_other_once_what_they_wrote_and_nothing_to_take_apart(
    tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bytes | None] = []

    def gather(ranks: Ranks, mine: bytes | None) -> list[bytes | None]:
        told.append(mine)
        return gather_or_raise(ranks, mine)

    monkeypatch.setattr("astroclip_dist.train.checkpoint.saving.gather_or_raise", gather)
    engine = small_engine(ranks)
    Checkpointer(Store(tmp_path), engine, {}, Checkpoint(background=False), STEPS).begin(Progress(5))
    description, nothing = told
    assert nothing is None
    assert description is not None
    assert {tensor for tensor, _ in unpack(description).places} == engine.state().keys()


def this_rank() -> Ranks:
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.get_rank(), torch.device("cpu"), made_group=False)


def fail_in_background(run: str, where: str, seen_by: str) -> str:
    """On each rank: a save fails in the background of one rank; the error that this rank gets from a method."""
    ranks = this_rank()
    away = where == "storage" and ranks.rank == 1
    engine = small_engine(ranks)
    checkpointer = Checkpointer(Store("/dev/null/run" if away else run), engine, {}, Checkpoint(), STEPS)
    if where == "program":
        checkpointer.before_newest(lambda: [].index(0))  # type: ignore[arg-type]
    checkpointer.begin(Progress(5))
    try:
        if seen_by == "begin":
            checkpointer.begin(Progress(6))
        elif seen_by == "finish":
            checkpointer.finish(time.monotonic() + 60)
        else:
            for _ in range(2):
                settled(checkpointer)
                dist.barrier()
                checkpointer.advance(saving=False)
    except (StorageError, RuntimeError) as error:
        # It is told once, and nothing is under way any more.
        assert checkpointer.finish(None) is None
        return f"{type(error).__name__} {error}"
    return "saved"


@pytest.mark.parametrize("seen_by", ["advance", "begin", "finish"])
@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("storage", "StorageError /dev/null/run/checkpoints/step-000000005/rank-00001.safetensors: Not a directory"),
        ("program", "RuntimeError rank 0: ValueError("),
    ],
)
def test_an_error_in_the_background_of_one_rank_is_that_of_all(
    where: str, message: str, seen_by: str, tmp_path: Path, two_ranks: RankPool
) -> None:
    errors = two_ranks.run(fail_in_background, str(tmp_path), where, seen_by)
    assert all(error.replace("file://", "").startswith(message) for error in errors), errors
    assert complete_checkpoints(Store(tmp_path)) == []
    assert not (tmp_path / "checkpoints" / "latest").exists()


def begin_apart(run: str) -> list[tuple[int, int]]:
    """On each rank: the second save is begun by one rank after the other has done so. Bytes of each file, and of the
    parts in it, that are to be this rank's share."""
    ranks = this_rank()
    engine = small_engine(ranks)
    checkpointer = Checkpointer(Store(run), engine, {}, Checkpoint(), STEPS)
    checkpointer.begin(Progress(5))
    checkpointer.finish(None)
    begun = Path(run) / "begun"
    if ranks.rank == 1:
        while not begun.exists():
            time.sleep(0.002)
    checkpointer.begin(Progress(10))
    begun.touch()
    checkpointer.finish(None)
    manifest = read_checkpoint_manifest(Store(run).join("checkpoints/step-000000010"))
    return [(file["bytes"], file["bytes"] - file["header"]["bytes"]) for file in manifest["files"]]


def test_a_later_save_begins_without_the_other_ranks_and_each_writes_its_share(
    tmp_path: Path, two_ranks: RankPool
) -> None:
    files = two_ranks.run(begin_apart, str(tmp_path))[0]
    # Two layers of 8 x 8 weights and 8 biases with two moments each, and the step count of each of the four.
    assert sum(share for _, share in files) == 4 * (3 * 2 * (64 + 8) + 4)
    assert len(files) == 2
    assert max(share for _, share in files) < 0.6 * sum(share for _, share in files)
