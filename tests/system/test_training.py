"""Training through the command: bit for bit the same after kills, exit codes, and bad input of every kind."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from isal import isal_zlib
from mlflow import MlflowClient

from astroclip_dist.config import load_config
from astroclip_dist.data.stored.index import decode_index
from astroclip_dist.store import Store
from astroclip_dist.train.mlflow_run import read_history
from tests.altered import agree
from tests.random_survey import write_random_survey
from tests.rank_pool import RankPool
from tests.system.training_runs import (
    CONFIG,
    STEPS,
    Command,
    event,
    events,
    result,
    run_command,
    saves,
    undisturbed,
    write_config,
)


@dataclass(frozen=True)
class Survey:
    """A small dataset, and what a training on it gives that nobody disturbs."""

    data: str
    result: dict[str, str]


@pytest.fixture(scope="module", autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One MLflow database for all: creating one takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.getbasetemp() / 'training.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory, tracking: str) -> Survey:
    return Survey(*undisturbed(tmp_path_factory.getbasetemp()))


def train_in_pool(config: Path, overrides: list[str]) -> None:
    """A training without command and launcher, on this rank of a pool."""
    from astroclip_dist.train.loop import train
    from astroclip_dist.train.preemption import Notice
    from astroclip_dist.train.run_folder import register

    loaded = load_config(config, overrides)
    register(Store(loaded.run), loaded)
    train(loaded, Notice())


def losses(run: Path) -> dict[int, float]:
    return dict(read_history(Store(run), "loss"))


def test_a_killed_worker_changes_nothing(survey: Survey, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = Command(write_config(tmp_path, survey.data, str(run)))
    command.kill_worker(1, at="step 17/30")
    assert command.finish() == 0, command.output
    assert events(run) == [
        ("started", 0),
        *saves(5, 15),
        ("failed", None),
        ("restarting", None),
        ("resumed", 15),
        *saves(20, STEPS),
        ("finished", STEPS),
    ]
    assert "another rank ended without a word" in event(run, "failed")[0]["error"]
    assert event(run, "restarting")[0]["cause"].endswith("rank 1 was killed by SIGKILL")
    assert "Traceback" not in command.output
    assert result(run) == survey.result
    # One MLflow run, each step in it once.
    assert [step for step, _ in read_history(Store(run), "loss")] == list(range(1, STEPS + 1))


def test_a_killed_launcher_takes_its_workers_along_and_the_run_goes_on(survey: Survey, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = write_config(tmp_path, survey.data, str(run))
    command = Command(config)
    command.wait_for("step 7/30")
    workers = list(command.workers().values())
    assert len(workers) == 2
    # One that hangs does not see that its launcher is gone.
    workers[1].suspend()
    os.kill(command.process.pid, signal.SIGKILL)
    assert not psutil.wait_procs(workers, timeout=5)[1], "workers go on without their launcher"

    # The second attempt may not restart.
    command = Command(config, "health.max_restarts=0")
    command.kill_worker(0, at="step 17/30")
    assert command.finish() == 1
    assert "giving up" in command.output
    assert ("finished", STEPS) not in events(run)

    code, output = run_command(config)
    assert code == 0, output
    kinds = [entry for entry in events(run) if entry[0] not in ("saved", "failed")]
    assert kinds == [("started", 0), ("resumed", 5), ("resumed", 15), ("finished", STEPS)]
    assert result(run) == survey.result

    # Finished: the same command does nothing, another configuration is refused.
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code, output = run_command(config)
    assert (code, "nothing to do" in output) == (0, True), output
    code, output = run_command(config, "optimizer.lr=2e-3", "objective.head.embedding=64")
    assert code == 2
    assert "objective.head.embedding: 32 -> 64; optimizer.lr: 0.001 -> 0.002" in output
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_run_goes_on_with_fewer_workers_under_another_engine(
    survey: Survey, tracking: str, tmp_path: Path, two_ranks: RankPool
) -> None:
    text = CONFIG.replace("embedding: 32", "embedding: 32, dropout: 0").replace("30 steps", "15 steps")
    for name in ("reference", "changed"):
        (tmp_path / name).mkdir()
    reference, changed = tmp_path / "reference" / "run", tmp_path / "changed" / "run"
    reference_config = write_config(reference.parent, survey.data, str(reference), text)
    two_ranks.run(train_in_pool, reference_config, [f"tracking.uri={tracking}"])
    config = write_config(changed.parent, survey.data, str(changed), text)
    command = Command(config, "workers=4")
    command.wait_for("step 7/15")
    command.process.kill()
    command.finish()
    code, output = run_command(config, "workers=2", "engine.name=fsdp")
    assert code == 0, output
    assert event(changed, "started")[0]["world_size"] == 4
    assert event(changed, "resumed")[0]["world_size"] == 2
    expected, found = losses(reference), losses(changed)
    assert set(found) >= set(range(6, 16))
    assert max(abs(found[step] - expected[step]) for step in found) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
def test_a_killed_worker_changes_nothing_under_engine(survey: Survey, engine: str, tmp_path: Path) -> None:
    results = []
    for name in ("undisturbed", "killed"):
        run = tmp_path / name / "run"
        run.parent.mkdir()
        command = Command(write_config(run.parent, survey.data, str(run)), f"engine.name={engine}")
        if name == "killed":
            command.kill_worker(0, at="step 17/30")
        assert command.finish() == 0, command.output
        results.append(result(run))
    assert ("resumed", 15) in events(tmp_path / "killed" / "run")
    assert results[0] == results[1]


SHORT = CONFIG.replace("width: 128, depth: 3", "width: 32, depth: 1").replace("length: 30 steps", "length: 9 steps")


def make_not_finite(folder: Path, shard: str, row: int) -> str:
    """Put a NaN into a sample's spectrum with checksums that are right, as a source's mistake would; gives its key."""
    tar, idx = folder / f"{shard}.tar", folder / f"{shard}.idx"
    index = decode_index(idx.read_bytes(), idx.name)
    table = index.members["spectrum"]
    first, last = int(table.offset[row]), int(table.offset[row] + table.length[row])
    data = bytearray(tar.read_bytes())
    data[last - 4 : last] = np.array([np.nan], np.float32).tobytes()
    tar.write_bytes(data)
    rows = pa.ipc.open_file(idx.read_bytes()).read_all()
    crcs = rows.column("spectrum_crc32").to_pylist()
    crcs[row] = isal_zlib.crc32(bytes(data[first:last]))
    number = rows.schema.get_field_index("spectrum_crc32")
    changed = rows.set_column(number, rows.schema.field(number), pa.array(crcs, pa.uint32()))
    with pa.ipc.new_file(str(idx), rows.schema) as writer:
        writer.write_table(changed)
    agree(folder, shard)
    return index.keys[row]


def test_a_sample_that_is_not_finite_is_skipped_until_the_budget_is_spent(tmp_path: Path) -> None:
    write_random_survey(str(tmp_path / "data"), 48, samples_per_shard=48)
    key = make_not_finite(tmp_path / "data", "train-000000", 7)
    run = tmp_path / "run"
    config = write_config(tmp_path, str(tmp_path / "data"), str(run), SHORT)
    # The sample comes once in each of three epochs of three steps; the second time is one too many.
    code, output = run_command(config, "health.skipped_steps_budget=1")
    assert code == 1
    message = "health.skipped_steps_budget: 2 steps with a loss or gradient that is not finite; 1 are allowed"
    assert len([line for line in output.splitlines() if message in line and " failed: " not in line]) == 1, output
    assert "Traceback" not in output
    assert "restarts left" not in output
    skipped = event(run, "skipped")
    assert [entry["keys"] for entry in skipped] == [[key], [key]]
    assert [entry["epoch"] for entry in skipped] == [0, 1]
    assert message in event(run, "failed")[0]["error"]
    # Every other step was taken with finite weights.
    last = skipped[1]["step"]
    assert sorted([*losses(run), *(entry["step"] for entry in skipped)]) == list(range(1, last + 1))
    identity = json.loads((run / "tracking.json").read_text())
    assert MlflowClient().get_run(identity["run_id"]).info.status == "FAILED"


def damage_a_sample(folder: Path) -> str:
    """Flip a bit in a sample's image; gives its key."""
    tar = folder / "train-000000.tar"
    index = decode_index((folder / "train-000000.idx").read_bytes(), "index")
    data = bytearray(tar.read_bytes())
    data[int(index.members["image"].offset[11]) + 500] ^= 1
    tar.write_bytes(data)
    return index.keys[11]


def test_a_damaged_sample_is_quarantined_and_the_run_ends_well(tmp_path: Path) -> None:
    write_random_survey(str(tmp_path / "data"), 48, samples_per_shard=48)
    key = damage_a_sample(tmp_path / "data")
    run = tmp_path / "run"
    config = write_config(tmp_path, str(tmp_path / "data"), str(run), SHORT)
    code, output = run_command(config, "health.quarantine_budget=0.05")
    assert code == 0, output
    (quarantined,) = event(run, "quarantined")
    assert quarantined["samples"] == 1
    assert f"train-000000.tar: sample {key}: image: crc32" in quarantined["what"][0]
    (line,) = (run / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == key
    assert len(losses(run)) == 9


def test_damage_above_the_budget_stops_the_run_and_is_named(tmp_path: Path) -> None:
    write_random_survey(str(tmp_path / "data"), 48, samples_per_shard=48)
    key = damage_a_sample(tmp_path / "data")
    run = tmp_path / "run"
    code, output = run_command(write_config(tmp_path, str(tmp_path / "data"), str(run), SHORT))
    assert code == 1
    reason = rf"health\.quarantine_budget: 1 samples cannot be read; 0 are allowed; .*sample {key}: image: crc32"
    assert re.search(reason, output), output
    assert re.search(reason, event(run, "failed")[0]["error"])
    assert "Traceback" not in output
    assert "restarts left" not in output
    assert [kind for kind, _ in events(run)].count("started") == 1


def test_a_run_refused_by_its_workers_leaves_its_folder_free(tmp_path: Path) -> None:
    write_random_survey(str(tmp_path / "data"), 48)
    config = write_config(tmp_path, str(tmp_path / "data"), str(tmp_path / "run"), SHORT)
    assert refused(config, "objective.image.crop=48") == (
        2,
        "objective.image.crop: 48. The dataset's images have 24 pixels a side.",
    )


def refused(config: Path, *arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and message of a training that must leave nothing behind."""
    code, output = run_command(config, *arguments, environment=environment)
    assert "Traceback" not in output, output
    left = [path for path in (config.parent / "run").rglob("*") if path.is_file()]
    assert not left
    message = next(line for line in output.splitlines() if "error: " in line or re.match(r"[\d:]+ rank \d  \w", line))
    # The first rank may repeat another one's message before that one has said it.
    return code, re.sub(r"^error: |^[\d:]+ rank \d  (rank \d failed: )?", "", message)


NO_SERVER = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_ACCESS_KEY_ID": "trainer",
    "AWS_SECRET_ACCESS_KEY": "unused",
    "AWS_REGION": "us-east-1",
}


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("optimizer.learning_rate=1e-3", 2, r"optimizer\.learning_rate: unknown key"),
        ("optimiser.lr=1e-3", 2, r"optimiser: unknown key .*Did you mean 'optimizer'\?"),
        ("workers=3", 2, r"workers: 3\. It must divide batch\.lanes = 4"),
        ("batch.global_size=400", 2, r"batch\.global_size: 400\. The split has 48 samples"),
        ("data=/nowhere", 1, r"file:///nowhere/manifest\.json: not there\. No dataset"),
        (
            "data=s3://bucket/survey",
            1,
            r"s3://bucket/survey/manifest\.json: .*AWS_ENDPOINT_URL and that the storage is up",
        ),
        ("run=/dev/null/run", 1, r"file:///dev/null/run/holder\.json: Not a directory\. Choose a folder"),
        ("tracking.uri=ftp://nowhere", 2, r"tracking.uri: ftp://nowhere\. It cannot be used"),
    ],
)
def test_what_is_refused_and_how(override: str, code: int, message: str, tmp_path: Path) -> None:
    write_random_survey(str(tmp_path / "data"), 48)
    config = write_config(tmp_path, str(tmp_path / "data"), str(tmp_path / "run"), SHORT)
    found, said = refused(config, override, environment=NO_SERVER)
    assert found == code
    assert re.match(message, said), said


def test_a_dataset_of_another_schema_is_refused(tmp_path: Path) -> None:
    write_random_survey(str(tmp_path / "data"), 48)
    manifest = tmp_path / "data" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 1', '"schema_version": 9'))
    code, said = refused(write_config(tmp_path, str(tmp_path / "data"), str(tmp_path / "run"), SHORT))
    assert code == 1
    assert "manifest.json: schema_version: 9. This version of astroclip reads schema 1" in said
