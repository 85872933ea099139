"""Checkpoints: whole or not there, damage noticed wherever it is, nothing in them but safetensors and JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from torch import nn

from astroclip_dist.config.engine import DdpEngine, FsdpEngine
from astroclip_dist.config.model import TransformerSize
from astroclip_dist.config.run import Optimizer
from astroclip_dist.data.ordering.order import Cursor
from astroclip_dist.errors import DataError, StorageError
from astroclip_dist.models.initial import InitialValues, initialise
from astroclip_dist.models.sequences import pack
from astroclip_dist.models.transformer import Block
from astroclip_dist.parallel.engines import Engine, StepRates
from astroclip_dist.parallel.engines.ddp import Ddp
from astroclip_dist.parallel.engines.fsdp import Fsdp
from astroclip_dist.parallel.process_group import Ranks, join, leave
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import (
    Progress,
    complete_checkpoints,
    read_checkpoint_manifest,
    resolve_checkpoint,
    restore,
    save,
    verify,
)
from astroclip_dist.train.weights import load_weights
from tests.rank_pool import RankPool

OPTIMIZER = Optimizer(lr=1e-2)


class Small(nn.Sequential):
    """(n, tokens, 8) to (rows, 3)."""

    def __init__(self, width: int) -> None:
        block = Block(TransformerSize(width=width, depth=1, heads=2))
        super().__init__(nn.Linear(8, width), block, nn.Linear(width, 3))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        packed, packing = pack([self[0](tokens)])
        return self[2](self[1](packed, packing))


def model(width: int = 16) -> nn.Module:
    made = Small(width)
    initialise(made, InitialValues(made, seed=0))
    return made


def sharded(ranks: Ranks) -> Fsdp:
    made = model()
    return Fsdp(FsdpEngine(), ranks, made, OPTIMIZER, InitialValues(made, seed=0))


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """A group of this process alone."""
    ranks = join("cpu", 60.0)
    yield ranks
    leave(ranks)


@pytest.fixture
def new_engine(ranks: Ranks) -> Callable[[], Engine]:
    def new() -> Engine:
        made = model()
        return Ddp(DdpEngine(), ranks, made, OPTIMIZER, InitialValues(made, seed=0))

    return new


def train(engine: Engine, steps: int = 1) -> None:
    """A few steps on random numbers, so that weights, moments and step counts are all different from fresh ones."""
    for _ in range(steps):
        engine.backward(engine.forward(torch.randn(4, 5, 8)).square().mean(), last=True)
        engine.step(StepRates(1e-2, 0.05))


def copy(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.state().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def two_saves(tmp_path: Path, new_engine: Callable[[], Engine]) -> tuple[Path, list[dict[str, torch.Tensor]]]:
    """A run folder with checkpoints at steps 10 and 20, and their states."""
    engine, states = new_engine(), []
    for step in (10, 20):
        train(engine)
        save(Store(tmp_path), engine, Progress(step, Cursor(1, step), 2), keep_last=5)
        states.append(copy(engine))
    assert not same(*states)
    return tmp_path, states


def test_what_was_saved_is_restored(
    two_saves: tuple[Path, list[dict[str, torch.Tensor]]], new_engine: Callable[[], Engine]
) -> None:
    run, states = two_saves
    engine = new_engine()
    assert restore(Store(run), engine) == Progress(20, Cursor(1, 20), 2)
    assert same(copy(engine), states[1])
    assert {name.rpartition(".")[2] for name in states[1]} >= {"weight", "bias", "exp_avg", "exp_avg_sq", "step"}
    assert float(states[1]["optimizer.0.weight.step"]) == 2


def test_a_run_without_checkpoints_has_nothing_to_restore(tmp_path: Path, new_engine: Callable[[], Engine]) -> None:
    assert restore(Store(tmp_path), new_engine()) is None


def test_every_file_is_safetensors_or_json(two_saves: tuple[Path, list[dict[str, torch.Tensor]]]) -> None:
    files = [path for path in two_saves[0].rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"latest", "manifest.json", "rank-00000.safetensors"}
    for path in files:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, "pt") as opened:
                assert len(list(opened.keys())) > 10
        else:
            json.loads(path.read_text())


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped byte": lambda folder: flip(folder / "rank-00000.safetensors", -100),
    "truncated file": lambda folder: (folder / "rank-00000.safetensors").write_bytes(
        (folder / "rank-00000.safetensors").read_bytes()[:-50]
    ),
    "empty file": lambda folder: (folder / "rank-00000.safetensors").write_bytes(b""),
    "missing file": lambda folder: (folder / "rank-00000.safetensors").unlink(),
    "manifest of another format": lambda folder: (folder / "manifest.json").write_text('{"format_version": 1}'),
    "manifest that is no JSON": lambda folder: (folder / "manifest.json").write_text('{"format_version": 1'),
    "manifest with another step": lambda folder: (folder / "manifest.json").write_text(
        (folder / "manifest.json").read_text().replace('"step": 20', '"step": 21', 1)
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    damage: str,
    two_saves: tuple[Path, list[dict[str, torch.Tensor]]],
    new_engine: Callable[[], Engine],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run, states = two_saves
    DAMAGE[damage](run / "checkpoints" / "step-000000020")
    engine = new_engine()
    with caplog.at_level(logging.ERROR):
        assert restore(Store(run), engine) == Progress(10, Cursor(1, 10), 2)
    assert same(copy(engine), states[0])
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("astroclip_dist")]
    assert "step-000000020 cannot be used, taking the one before: " in message
    assert message.count("step-000000020") == 2, "the damaged file is not named"


@pytest.mark.parametrize("name", ["manifest.json", "rank-00000.safetensors"])
def test_no_flipped_bit_goes_unnoticed(
    name: str, two_saves: tuple[Path, list[dict[str, torch.Tensor]]], new_engine: Callable[[], Engine]
) -> None:
    run, states = two_saves
    path = run / "checkpoints" / "step-000000020" / name
    engine, whole = new_engine(), path.read_bytes()
    data = 0 if name == "manifest.json" else sum(tensor.nbytes for tensor in states[1].values())
    header = len(whole) - data
    # First and last byte, both sides of the border between header and data, and any.
    places = {
        0,
        7,
        8,
        header - 1,
        header % len(whole),
        len(whole) - 1,
        *np.random.default_rng(0).integers(len(whole), size=12),
    }
    for at in sorted(map(int, places)):
        flip(path, at)
        progress = restore(Store(run), engine)
        assert progress is not None
        assert progress.step == 10, f"the flipped bit in byte {at} of {len(whole)} was not found"
        assert same(copy(engine), states[0])
        assert verify(Store(path.parent)) != []
        path.write_bytes(whole)
    assert verify(Store(path.parent)) == []


def test_a_damaged_pointer_is_an_error_that_names_it(
    two_saves: tuple[Path, list[dict[str, torch.Tensor]]], new_engine: Callable[[], Engine]
) -> None:
    run, states = two_saves
    latest = run / "checkpoints" / "latest"
    whole = latest.read_bytes()
    for at in range(len(whole)):
        flip(latest, at)
        try:
            with pytest.raises(DataError, match=r"checkpoints/latest: damaged|not there"):
                read_checkpoint_manifest(resolve_checkpoint(str(run))[1])
        finally:
            latest.write_bytes(whole)
    flip(latest, 3)
    # Going on with a run needs no pointer.
    engine = new_engine()
    assert restore(Store(run), engine) == Progress(20, Cursor(1, 20), 2)
    assert same(copy(engine), states[1])
    assert resolve_checkpoint(str(run))[1].url.endswith("step-000000020"), "the pointer is mended, too"


def test_all_checkpoints_damaged_is_an_error(
    two_saves: tuple[Path, list[dict[str, torch.Tensor]]], new_engine: Callable[[], Engine]
) -> None:
    run, _ = two_saves
    for step in (10, 20):
        flip(run / "checkpoints" / f"step-{step:09d}" / "rank-00000.safetensors", -100)
    with pytest.raises(DataError, match="2 checkpoints, none whole"):
        restore(Store(run), new_engine())


def test_leftovers_of_an_interrupted_save_are_ignored_then_removed(
    two_saves: tuple[Path, list[dict[str, torch.Tensor]]], new_engine: Callable[[], Engine]
) -> None:
    run, _ = two_saves
    left = run / "checkpoints" / "step-000000030"
    left.mkdir()
    (left / "rank-00000.safetensors").write_bytes(b"half")
    (left / "rank-00001.safetensors#1").write_bytes(b"what a killed write leaves aside")
    engine = new_engine()
    assert restore(Store(run), engine) == Progress(20, Cursor(1, 20), 2)
    # Here with another number of ranks: nothing of the other save may stay beside this one's files.
    save(Store(run), engine, Progress(30), keep_last=5)
    assert sorted(path.name for path in left.iterdir()) == ["manifest.json", "rank-00000.safetensors"]
    (run / "checkpoints" / "step-000000015").mkdir()
    (run / "checkpoints" / "step-000000015" / "rank-00000.safetensors#1").write_bytes(b"half")
    save(Store(run), engine, Progress(40), keep_last=5)
    assert not (run / "checkpoints" / "step-000000015").exists()


def test_the_newest_are_kept_and_folders_of_others_vanish(tmp_path: Path, new_engine: Callable[[], Engine]) -> None:
    engine = new_engine()
    for step in range(1, 6):
        save(Store(tmp_path), engine, Progress(step), keep_last=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "latest",
        "step-000000004",
        "step-000000005",
    ]


def test_a_run_that_went_back_keeps_its_own_checkpoints_not_the_abandoned_ones(
    two_saves: tuple[Path, list[dict[str, torch.Tensor]]], new_engine: Callable[[], Engine]
) -> None:
    run, _ = two_saves
    flip(run / "checkpoints" / "step-000000020" / "rank-00000.safetensors", -100)
    engine = new_engine()
    assert restore(Store(run), engine) == Progress(10, Cursor(1, 10), 2)
    save(Store(run), engine, Progress(15), keep_last=1)
    assert complete_checkpoints(Store(run)) == ["checkpoints/step-000000015"]
    assert restore(Store(run), new_engine()) == Progress(15)


def test_latest_moves_only_to_a_complete_checkpoint(
    two_saves: tuple[Path, list[dict[str, torch.Tensor]]], new_engine: Callable[[], Engine]
) -> None:
    run, _ = two_saves
    (run / "checkpoints" / "step-000000030").write_text("in the way of the folder")
    with pytest.raises(StorageError, match="step-000000030"):
        save(Store(run), new_engine(), Progress(30), keep_last=5)
    assert resolve_checkpoint(str(run))[1].url.endswith("step-000000020")
    assert resolve_checkpoint(str(run / "checkpoints" / "step-000000010"))[1].url.endswith("step-000000010")


def test_a_checkpoint_may_be_named_from_where_it_lies(
    two_saves: tuple[Path, list[dict[str, torch.Tensor]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = two_saves
    monkeypatch.chdir(run / "checkpoints")
    assert [store.url for store in resolve_checkpoint("step-000000010")] == [
        run.as_uri(),
        (run / "checkpoints" / "step-000000010").as_uri(),
    ]


def test_weights_load_into_a_plain_module(two_saves: tuple[Path, list[dict[str, torch.Tensor]]]) -> None:
    run, states = two_saves
    store, checkpoint = resolve_checkpoint(str(run))
    assert store.url == run.as_uri()
    plain = model()
    load_weights(plain, checkpoint)
    assert all(torch.equal(value, states[1][f"model.{name}"]) for name, value in plain.state_dict().items())


def test_weights_that_are_damaged_or_of_another_size_are_plain_errors(
    two_saves: tuple[Path, list[dict[str, torch.Tensor]]],
) -> None:
    run, _ = two_saves
    _, checkpoint = resolve_checkpoint(str(run))
    with pytest.raises(DataError, match=r"model\.0\.weight: shape \(\d+, 8\). It needs shape \(32, 8\)"):
        load_weights(model(width=32), checkpoint)
    (chunk,) = json.loads(checkpoint.read("manifest.json"))["tensors"]["model.0.weight"]["chunks"]
    flip(run / "checkpoints" / "step-000000020" / chunk["file"], chunk["at"])
    with pytest.raises(DataError, match=r"rank-00000\.safetensors: model\.0\.weight: crc32"):
        load_weights(model(), checkpoint)


def test_no_checkpoint_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no complete checkpoint"):
        resolve_checkpoint(str(tmp_path))


def restore_sharded(run: str, damaged_rank: int | None) -> tuple[int, bool]:
    """On each rank: save twice with FSDP, damage one rank's file, restore; the step, and whether the state is its."""
    import torch.distributed as dist

    ranks = Ranks(dist.get_rank(), dist.get_world_size(), dist.get_rank(), torch.device("cpu"), made_group=False)
    engine, states = sharded(ranks), {}
    for step in (10, 20):
        train(engine)
        save(Store(run), engine, Progress(step), keep_last=5)
        states[step] = {name: tensor.full_tensor().clone() for name, tensor in engine.state().items() if "exp" in name}
    if damaged_rank == ranks.rank:
        flip(Path(run) / "checkpoints" / "step-000000020" / f"rank-{damaged_rank:05d}.safetensors", -100)
    dist.barrier()
    fresh = sharded(ranks)
    progress = restore(Store(run), fresh)
    assert progress is not None
    found = {name: tensor.full_tensor() for name, tensor in fresh.state().items() if "exp" in name}
    return progress.step, same(found, states[progress.step])


@pytest.mark.parametrize(("damaged_rank", "step"), [(None, 20), (0, 10), (1, 10)])
def test_all_ranks_agree_which_checkpoint_is_taken(
    damaged_rank: int | None, step: int, tmp_path: Path, two_ranks: RankPool
) -> None:
    assert two_ranks.run(restore_sharded, str(tmp_path), damaged_rank) == [(step, True)] * 2


def save_with_a_full_disk_on_one_rank(run: str) -> str:
    """Rank 1 cannot write its file: the error of both ranks."""
    import torch.distributed as dist

    ranks = Ranks(dist.get_rank(), dist.get_world_size(), dist.get_rank(), torch.device("cpu"), made_group=False)
    engine = sharded(ranks)
    # A folder where the file should be.
    url = Store(run) if ranks.rank == 0 else Store("/dev/null/run")
    try:
        save(url, engine, Progress(10), keep_last=5)
    except StorageError as error:
        return str(error)
    return "saved"


def test_a_rank_that_cannot_write_is_the_error_of_all(tmp_path: Path, two_ranks: RankPool) -> None:
    errors = two_ranks.run(save_with_a_full_disk_on_one_rank, str(tmp_path))
    assert all("/dev/null/run/checkpoints/step-000000010/rank-00001.safetensors: Not a directory" in e for e in errors)
    assert complete_checkpoints(Store(tmp_path)) == []
    assert not (tmp_path / "checkpoints" / "latest").exists()
