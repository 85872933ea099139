"""SIGKILL before and after every write and removal of a save: the run has the checkpoint before, or the new one."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch

from astroclip_dist.data.ordering.order import Cursor
from astroclip_dist.parallel.process_group import Ranks, join, leave
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import Progress, describe, resolve_checkpoint, restore, save, verify
from tests.small_engine import small_engine
from tests.system.save_to_kill import FIRST, RANKS, SECOND, Kill, save_twice

# What the second save does on each rank, in this order. The first save's checkpoint goes when the second is complete.
OLD, NEW = f"step-{FIRST:09d}", f"step-{SECOND:09d}"
OPERATIONS = [
    [
        f"put {NEW}/rank-00000.safetensors",
        f"put {NEW}/manifest.json",
        "put checkpoints/latest",
        f"delete {OLD}/manifest.json",
        f"delete {OLD}/rank-00000.safetensors",
        f"delete {OLD}/rank-00001.safetensors",
        f"remove folder checkpoints/{OLD}",
    ],
    [f"put {NEW}/rank-00001.safetensors"],
]
MANIFEST, LATEST = OPERATIONS[0].index(f"put {NEW}/manifest.json"), OPERATIONS[0].index("put checkpoints/latest")
KILLS = [
    Kill(rank, number, after)
    for rank, operations in enumerate(OPERATIONS)
    for number in range(len(operations))
    for after in (False, True)
]


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """A group of this process alone, to restore in."""
    ranks = join("cpu", 60.0)
    yield ranks
    leave(ranks)


def run_ranks(folder: Path, background: bool, kill: Kill | None) -> None:
    """Two ranks save; when one is killed so is the other, as a launcher does."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.system.save_to_kill"])
    processes = [context.Process(target=save_twice, args=(rank, folder, background, kill)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    ended = wait([process.sentinel for process in processes], 60) if kill else []
    for process in processes:
        if kill and ended:
            process.kill()
        process.join(60)
        assert process.exitcode is not None, "a rank hangs"
    if kill is None:
        assert [process.exitcode for process in processes] == [0, 0]


@pytest.mark.parametrize("background", [False, True], ids=["waited for", "in background"])
def test_what_a_save_does_is_what_is_killed_below(background: bool, tmp_path: Path) -> None:
    run_ranks(tmp_path, background, None)
    assert [json.loads((tmp_path / f"operations-{rank}").read_text()) for rank in range(RANKS)] == OPERATIONS


def name_of(kill: Kill) -> str:
    return f"{'after' if kill.after else 'before'} {OPERATIONS[kill.rank][kill.operation]}"


@pytest.mark.parametrize(
    "background", [pytest.param(False, id="waited for", marks=pytest.mark.slow), pytest.param(True, id="in background")]
)
@pytest.mark.parametrize(
    "kill", [pytest.param(kill, id=name_of(kill), marks=pytest.mark.slow if kill.after else ()) for kill in KILLS]
)
def test_killed_at_any_operation_a_run_has_a_whole_checkpoint(
    kill: Kill, background: bool, tmp_path: Path, ranks: Ranks
) -> None:
    run_ranks(tmp_path, background, kill)
    # The moment came: a rank that is not killed writes this at its end.
    assert not (tmp_path / f"operations-{kill.rank}").exists()
    run = Store(tmp_path / "run")
    complete = kill.rank == 0 and (kill.operation, kill.after) > (MANIFEST, False)
    step = SECOND if complete else FIRST

    pointed = kill.rank == 0 and (kill.operation, kill.after) > (LATEST, False)
    assert resolve_checkpoint(run.url)[1].url.endswith(NEW if pointed else OLD)
    engine = small_engine(ranks)
    assert restore(run, engine) == Progress(step, Cursor(0, step))
    assert all(bool(torch.all(tensor == step)) for tensor in engine.state().values())
    # What a run goes on from is what its weights are exported from, should this have been its last step.
    assert resolve_checkpoint(run.url)[1].url.endswith(NEW if complete else OLD)
    # Each folder is whole or has no manifest.
    for found in describe(run):
        assert found.is_complete or found.fault == "incomplete: its save is under way or was interrupted"
        assert found.is_complete is (verify(run.join(found.name)) == [])

    # The run goes on, and its next save leaves nothing of all that.
    save(run, engine, Progress(SECOND + 10), keep_last=1)
    assert [(found.step, found.fault) for found in describe(run)] == [(SECOND + 10, None)]
