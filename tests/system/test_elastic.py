"""A run that goes on with another world size in mid-epoch: the same global batches, the same curve."""

from __future__ import annotations

import json
import signal
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from astroclip_dist.config import load_config
from astroclip_dist.data.ordering.order import Cursor, Order
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.store import Store
from astroclip_dist.train.mlflow_run import read_history
from tests.random_survey import write_random_survey
from tests.rank_pool import RankPool
from tests.system.training_runs import CONFIG, STEPS_AN_EPOCH, Command, event, run_command, write_config

STEPS = 15
TEXT = CONFIG.replace("30 steps", f"{STEPS} steps")
# Runs at the start of each worker: writes down the samples of each batch that the training takes, in rank order.
RECORDER = """
import importlib.machinery, json, os, sys

class Recorder:
    def find_spec(self, name, path, target=None):
        if name != "astroclip_dist.data.streaming.stream":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            take = module.Stream.__next__
            def recorded(stream):
                batch = take(stream)
                rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
                with open(f"{os.environ['RECORD']}/{rank}-of-{size}-{os.getpid()}", "a") as file:
                    print(json.dumps([batch.cursor.epoch, batch.cursor.step, int(rank), batch.keys]), file=file)
                return batch
            module.Stream.__next__ = recorded
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Recorder())
"""


@pytest.fixture(scope="module", autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One MLflow database for all: creating one takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.getbasetemp() / 'training.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


def train_in_pool(config: Path, tracking: str) -> None:
    """A training that nothing interrupts, without command and launcher, on this rank of a pool."""
    from astroclip_dist.train.loop import train
    from astroclip_dist.train.preemption import Notice
    from astroclip_dist.train.run_folder import register

    loaded = load_config(config, [f"tracking.uri={tracking}"])
    register(Store(loaded.run), loaded)
    train(loaded, Notice())


def taken(record: Path) -> dict[tuple[int, int], list[list[str]]]:
    """(epoch, step) to what each rank took there, by rank."""
    parts: dict[tuple[int, int], dict[int, list[str]]] = defaultdict(dict)
    for path in record.iterdir():
        for line in path.read_text().splitlines():
            epoch, step, rank, keys = json.loads(line)
            assert rank not in parts[epoch, step], "a step was done twice"
            parts[epoch, step][rank] = keys
    return {at: [of_rank[rank] for rank in sorted(of_rank)] for at, of_rank in parts.items()}


def global_batches(config: Path) -> dict[tuple[int, int], list[str]]:
    """(epoch, step) to the samples that the order puts there."""
    loaded = load_config(config, [])
    dataset = Dataset.open(loaded.data_urls, ["train"])
    batch = loaded.batch
    order = Order(
        dataset.shard_samples,
        seed=loaded.seed,
        lanes=batch.lanes,
        global_batch=batch.global_size,
        window_shards=batch.window_shards,
    )
    keys = [shard.read_index().keys for shard in dataset.shards]
    found, cursor = {}, Cursor()
    for _ in range(STEPS):
        pairs = order.step_samples(cursor.epoch, cursor.step).reshape(-1, 2)
        found[cursor.epoch, cursor.step] = [keys[shard][row] for shard, row in pairs]
        cursor = order.next(cursor)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 1), (4, 2, 1, 4)])
def test_a_run_that_is_preempted_goes_on_with_another_world_size(
    sizes: tuple[int, ...], tracking: str, two_ranks: RankPool, tmp_path: Path
) -> None:
    write_random_survey(str(tmp_path / "data"), 100)
    for name in ("reference", "changing", "record", "site"):
        (tmp_path / name).mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(RECORDER)
    reference, run = tmp_path / "reference" / "run", tmp_path / "changing" / "run"
    two_ranks.run(train_in_pool, write_config(reference.parent, str(tmp_path / "data"), str(reference), TEXT), tracking)

    config = write_config(run.parent, str(tmp_path / "data"), str(run), TEXT)
    recording = {"PYTHONPATH": str(tmp_path / "site"), "RECORD": str(tmp_path / "record")}
    left = 0
    for size in sizes[:-1]:
        command = Command(config, f"workers={size}", environment=recording)
        command.wait_for(f"step {left + 2}/{STEPS}")
        command.process.send_signal(signal.SIGUSR1)
        assert command.finish() == 75, command.output
        left = event(run, "preempted")[-1]["step"]
    code, output = run_command(config, f"workers={sizes[-1]}", environment=recording)
    assert code == 0, output

    begun = event(run, "started") + event(run, "resumed")
    assert [entry["world_size"] for entry in begun] == list(sizes)
    stops = [entry["step"] for entry in event(run, "preempted")]
    # No step is lost, and none is done twice (see ``taken``).
    assert [entry["step"] for entry in begun] == [0, *stops]
    assert {entry["reason"] for entry in event(run, "preempted")} == {"SIGUSR1"}
    assert any(step % STEPS_AN_EPOCH for step in stops), stops

    batches = taken(tmp_path / "record")
    for number, at in enumerate(sorted(batches)):
        assert len(batches[at]) == sizes[sum(number >= step for step in stops)]
    assert {at: [key for part in parts for key in part] for at, parts in batches.items()} == global_batches(config)
    expected, found = dict(read_history(Store(reference), "loss")), dict(read_history(Store(run), "loss"))
    assert list(found) == list(range(1, STEPS + 1))
    assert max(abs(found[step] - expected[step]) for step in found) < 1e-5
