"""The run folder: one URL is one run, and its events are kept across restarts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from astroclip_dist.config import RunConfig, parse_config
from astroclip_dist.errors import ConfigError
from astroclip_dist.store import Store
from astroclip_dist.train.event_log import EventLog
from astroclip_dist.train.run_folder import (
    RUN_FILE,
    SPOOL_FOLDER,
    is_finished,
    read_run_config,
    register,
    withdraw,
)

CONFIG = """
data: /survey
run: /runs/a
length: 10 steps
batch: {global_size: 16, lanes: 4}
optimizer: {lr: 1e-3}
"""


def config(**changes: object) -> RunConfig:
    return parse_config(yaml.safe_dump({**yaml.safe_load(CONFIG), **changes}), "test")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "run")


def test_a_new_run_is_written_down_with_its_versions(store: Store) -> None:
    assert register(store, config()) is False
    assert read_run_config(store) == config()
    made_with = yaml.safe_load(store.read(RUN_FILE))["made_with"]
    assert {"astroclip-dist", "python", "torch", "numpy"} <= made_with.keys()


def test_the_same_run_is_taken_up(store: Store) -> None:
    register(store, config())
    before = store.read(RUN_FILE)
    assert register(store, config()) is True
    assert store.read(RUN_FILE) == before


def test_where_and_how_a_run_goes_on_may_change(store: Store) -> None:
    register(store, config())
    elsewhere = config(
        workers=4,
        launcher="ray",
        device="cpu",
        engine={"name": "fsdp", "precision": "bf16"},
        reading={"threads": 8},
        checkpoint={"every": "3 steps"},
        tracking={"log_every": 1},
        health={"max_restarts": 0},
    )
    assert register(store, elsewhere) is True
    # What looks after the run from outside goes by what was asked for last.
    assert read_run_config(store) == elsewhere


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"data": "/other"}, r"data: \['file:///survey'\] -> \['file:///other'\]"),
        ({"length": "20 steps"}, "length: '10 steps' -> '20 steps'"),
        ({"batch": {"global_size": 32, "lanes": 4}}, "batch.global_size: 16 -> 32"),
        ({"objective": {"head": {"embedding": 512}}}, "objective.head.embedding: 1024 -> 512"),
    ],
)
def test_another_run_is_refused_with_the_difference(store: Store, change: dict[str, object], difference: str) -> None:
    register(store, config())
    with pytest.raises(ConfigError, match=difference):
        register(store, config(**change))
    assert read_run_config(store) == config()


def test_of_two_runs_at_once_one_wins(store: Store) -> None:
    def attempt(seed: int) -> bool:
        try:
            return not register(store, config(seed=seed))
        except ConfigError:
            return False

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, range(8)))
    assert won.count(True) == 1
    assert read_run_config(store) == config(seed=won.index(True))


def test_a_run_that_never_began_can_be_corrected_and_one_that_did_cannot(store: Store) -> None:
    register(store, config())
    withdraw(store)
    assert not store.exists(RUN_FILE)
    register(store, config(seed=1))
    with EventLog(store) as log:
        log.write("started", step=0)
    withdraw(store)
    with pytest.raises(ConfigError, match="seed: 1 -> 0"):
        register(store, config())


def test_finished_means_that_mlflow_has_everything_too(store: Store) -> None:
    assert not is_finished(store)
    with EventLog(store) as log:
        log.write("started", step=0)
    assert not is_finished(store)
    with EventLog(store) as log:
        log.write("finished", step=10)
    assert is_finished(store)
    store.put(f"{SPOOL_FOLDER}/0001.jsonl", b"{}")
    assert not is_finished(store)


def test_no_run_there(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"No run there \(no run.yaml\)"):
        read_run_config(store)
