"""Which checkpoints are kept, what is said of them, and what a reader of every byte finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from astroclip_dist.config import parse_config
from astroclip_dist.config.run import Checkpoint
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.config.units import TrainingLength
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import (
    Retention,
    StoredCheckpoint,
    describe,
    prune,
    resolve_checkpoint,
    surplus,
    verify,
)
from astroclip_dist.train.checkpoint.folder import checkpoint_name, point_latest
from astroclip_dist.train.checkpoint.manifest import seal


def stored(step: int, score: float | None = None) -> StoredCheckpoint:
    return StoredCheckpoint(checkpoint_name(step), step, 1, None, score)


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(last=1), [6]),
        (Retention(last=3), [4, 5, 6]),
        (Retention(last=9), [1, 2, 3, 4, 5, 6]),
        (Retention(last=1, every=2), [2, 4, 6]),
        (Retention(last=2, every=3), [3, 5, 6]),
        (Retention(last=1, best=1), [3, 6]),
        (Retention(last=1, best=2), [2, 3, 6]),  # of two equal ones the earlier
        (Retention(last=1, every=4, best=1), [3, 4, 6]),
        (Retention(last=1, best=9), [2, 3, 4, 5, 6]),  # without a score none is among the best
    ],
)
def test_the_newest_the_multiples_and_the_best_are_kept(retention: Retention, kept: list[int]) -> None:
    scores = [None, 0.2, 0.1, 0.3, 0.2, 0.4]
    checkpoints = [stored(step, score) for step, score in enumerate(scores, start=1)]
    assert retention.keeps(checkpoints) == {checkpoint_name(step) for step in kept}


def test_lengths_in_any_unit() -> None:
    config = Checkpoint(keep_last=2, keep_every=TrainingLength(2, "epochs"), keep_best=1)
    assert Retention.of(config, RunSteps(100, 7, 16)) == Retention(last=2, every=14, best=1)
    assert Retention.of(Checkpoint(), RunSteps(100, 7, 16)) == Retention(last=3)


def test_from_outside_the_length_of_an_epoch_is_that_of_the_newest_save(tmp_path: Path) -> None:
    text = "run: unused\ndata: unused\nlength: 1 epochs\nbatch: {global_size: 16}\noptimizer: {lr: 1}\ncheckpoint: "
    run = Store(tmp_path)
    in_epochs = parse_config(text + "{keep_every: 2 epochs, keep_best: 1}", "test")
    in_samples = parse_config(text + "{keep_every: 160 samples}", "test")
    assert Retention.of_run(run, in_samples) == Retention(last=3, every=10)
    write(tmp_path, 40)
    assert Retention.of_run(run, in_epochs) == Retention(last=3, every=14, best=1)


def write(run: Path, step: int, score: float | None = None, data: bytes = b"0123456789") -> Path:
    """A complete checkpoint without tensors."""
    folder = run / checkpoint_name(step)
    folder.mkdir(parents=True)
    (folder / "rank-00000.safetensors").write_bytes(data)
    about: dict[str, object] = {"step": step, "score": score, "saved_at": "2026-01-02T03:04:05Z", "world_size": 2}
    about["steps_per_epoch"] = 7
    files = [{"name": "rank-00000.safetensors", "bytes": len(data), "sha256": "", "header": {"bytes": 1, "crc32": 0}}]
    (folder / "manifest.json").write_bytes(seal({**about, "files": files, "tensors": {}}))
    return folder


def steps(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir() if path.is_dir())


def test_damaged_ones_never_push_out_good_ones(tmp_path: Path) -> None:
    for step in range(1, 6):
        write(tmp_path, step)
    (tmp_path / checkpoint_name(3) / "rank-00000.safetensors").unlink()
    (tmp_path / checkpoint_name(4) / "rank-00000.safetensors").write_bytes(b"short")
    manifest = tmp_path / checkpoint_name(5) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 5', '"step": 6'))
    run = Store(tmp_path)
    assert [(found.step, found.fault) for found in describe(run)] == [
        (1, None),
        (2, None),
        (3, "rank-00000.safetensors: missing"),
        (4, "rank-00000.safetensors: 5 bytes instead of 10"),
        (5, "manifest.json: sha256 differs from what was written"),
    ]
    write(tmp_path, 6)
    removed = prune(run, Retention(last=2), newest=checkpoint_name(6))
    assert removed == [checkpoint_name(step) for step in (1, 3, 4, 5)]
    assert steps(tmp_path) == [2, 6]


def test_a_run_that_went_back_abandons_later_ones(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        write(tmp_path, step)
    assert prune(Store(tmp_path), Retention(last=2), newest=checkpoint_name(20)) == [
        checkpoint_name(30),
        checkpoint_name(40),
    ]
    assert steps(tmp_path) == [10, 20]


def test_asked_from_outside_nothing_is_touched_that_a_save_may_be_writing(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step)
    for step in (5, 40):
        (tmp_path / checkpoint_name(step)).mkdir()
        (tmp_path / checkpoint_name(step) / "rank-00001.safetensors").write_bytes(b"half")
    run = Store(tmp_path)
    assert surplus(run, Retention(last=1)) == [checkpoint_name(step) for step in (5, 10, 20)]
    assert steps(tmp_path) == [5, 10, 20, 30, 40]
    # As of a run that was killed after the manifest of its last save, before it could say so.
    point_latest(run, checkpoint_name(20))
    prune(run, Retention(last=1))
    assert steps(tmp_path) == [30, 40]
    assert resolve_checkpoint(run.url)[1].url.endswith(checkpoint_name(30))
    assert surplus(Store(tmp_path / "absent"), Retention(last=1)) == []


def test_what_else_lies_there_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    (tmp_path / "checkpoints" / "notes").mkdir()
    (tmp_path / "checkpoints" / "notes" / "why.txt").write_text("mine")
    prune(Store(tmp_path), Retention(last=1), newest=checkpoint_name(2))
    assert (tmp_path / "checkpoints" / "notes" / "why.txt").exists()


def test_description(tmp_path: Path) -> None:
    folder = write(tmp_path, 12, 0.25)
    size = sum(path.stat().st_size for path in folder.iterdir())
    (found,) = describe(Store(tmp_path))
    assert found == StoredCheckpoint(checkpoint_name(12), 12, size, None, 0.25, "2026-01-02T03:04:05Z", 2)
    assert describe(Store(tmp_path / "absent")) == []


def test_verify_names_what_is_wrong(tmp_path: Path) -> None:
    folder = Store(write(tmp_path, 1))
    (tmp_path / checkpoint_name(1) / "rank-00007.safetensors").write_bytes(b"of another save")
    assert verify(folder) == [
        "rank-00007.safetensors: not in the manifest",
        "rank-00000.safetensors: header: crc32 differs from what was written",
    ]
    assert verify(Store(tmp_path / "absent")) == ["manifest.json: not there"]
    (tmp_path / checkpoint_name(1) / "manifest.json").write_text(json.dumps({"format_version": 1}))
    assert verify(folder) == ["manifest.json: another format"]
