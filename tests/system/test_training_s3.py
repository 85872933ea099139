"""Training on object storage with a tracking server: dataset and run folder on S3, one MLflow run across a restart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from astroclip_dist.config import load_config
from astroclip_dist.store import Store
from astroclip_dist.train.run_folder import RUN_FILE
from tests.random_survey import write_random_survey
from tests.system.conftest import RealMlflowServer, RealObjectStore
from tests.system.training_runs import CONFIG, STEPS, Command, event, events, run_command, saves, write_config

EXPERIMENT = "training on S3"
TEXT = CONFIG.replace("tracking: {log_every: 1}", f"tracking: {{log_every: 1, experiment: {EXPERIMENT}}}")


@pytest.fixture
def bucket(object_store: RealObjectStore, mlflow_server: RealMlflowServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket with a dataset in ``survey/``; the trainer's credentials and the tracking server in the environment."""
    for name, value in {**object_store.environment, "MLFLOW_TRACKING_URI": mlflow_server.uri}.items():
        monkeypatch.setenv(name, value)
    url = object_store.create_bucket("training")
    if not Store(f"{url}/survey").exists("manifest.json"):
        write_random_survey(f"{url}/survey", 100)
    return url


def test_a_run_on_object_storage_survives_a_kill_as_one_mlflow_run(
    bucket: str, object_store: RealObjectStore, mlflow_server: RealMlflowServer, tmp_path: Path
) -> None:
    run = f"{bucket}/runs/killed"
    config = write_config(tmp_path, f"{bucket}/survey", run, TEXT)
    command = Command(config)
    command.kill_worker(0, at="step 17/30")
    assert command.finish() == 0, command.output
    assert "Traceback" not in command.output
    kinds = [entry for entry in events(run) if entry[0] not in ("failed", "restarting")]
    assert kinds == [("started", 0), *saves(5, 15), ("resumed", 15), *saves(20, STEPS), ("finished", STEPS)]

    names = [entry.name for entry in Store(run).list()]
    checkpoints = [name for name in names if name.startswith("checkpoints/")]
    assert checkpoints == [
        "checkpoints/latest",
        *(
            f"checkpoints/step-{step:09d}/{file}"
            for step in (25, 30)
            for file in ("manifest.json", "rank-00000.safetensors", "rank-00001.safetensors")
        ),
    ]
    assert "weights/model.safetensors" in names

    client = MlflowClient(mlflow_server.uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'killed'")
    identity = json.loads(Store(run).read("tracking.json"))
    assert tracked.info.run_id == identity["run_id"]
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["data"] == f"['{bucket}/survey']"
    assert tracked.data.params["objective.image.width"] == "128"
    assert tracked.data.params["batch.global_size"] == "16"
    history = client.get_metric_history(tracked.info.run_id, "loss")
    # What the killed process had not sent yet is computed again from the checkpoint on; nothing comes twice.
    assert [point.step for point in history] == sorted({point.step for point in history})
    assert {*range(16, STEPS + 1)} <= {point.step for point in history}
    assert history[-1].value < history[0].value
    assert tracked.data.metrics["samples_per_second"] > 0
    assert 0 <= tracked.data.metrics["data_wait_share"] <= 1
    assert tracked.data.metrics["system/system_memory_usage_percentage"] > 0
    artifact = Path(client.download_artifacts(tracked.info.run_id, RUN_FILE))
    # The resolved configuration, every default in it.
    assert yaml.safe_load(artifact.read_text())["config"] == load_config(config).model_dump(mode="json")
    for secret in (object_store.environment["AWS_SECRET_ACCESS_KEY"], object_store.admin["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in command.output
        assert secret not in artifact.read_text()
        assert secret not in str(tracked.to_dictionary())

    # The same command again: nothing to do, and nothing done.
    before = Store(run).list()
    code, output = run_command(config)
    assert (code, "nothing to do" in output) == (0, True), output
    assert Store(run).list() == before


@pytest.mark.parametrize(
    ("override", "environment", "message"),
    [
        ("data=s3://no-such-bucket/survey", {}, r"s3://no-such-bucket/survey/manifest.json: no such bucket"),
        ("run=s3://no-such-bucket/run", {}, "no such bucket. Create the bucket or correct the URL"),
        ("data=s3://training/nothing", {}, r"s3://training/nothing/manifest.json: not there. No dataset"),
        ("seed=1", {"AWS_SECRET_ACCESS_KEY": "wrong"}, r"survey/manifest.json: access refused (SignatureDoesNotMatch)"),
        ("seed=1", {"AWS_ACCESS_KEY_ID": "nobody"}, r"survey/manifest.json: access refused (InvalidAccessKeyId)"),
        ("seed=1", "reader", r"runs/refused/holder.json: access refused"),
    ],
)
def test_storage_that_refuses_is_named(
    override: str,
    environment: dict[str, str] | str,
    message: str,
    bucket: str,
    object_store: RealObjectStore,
    tmp_path: Path,
) -> None:
    run = f"{bucket}/runs/refused"
    identity = object_store.reader if environment == "reader" else environment
    assert isinstance(identity, dict)
    code, output = run_command(write_config(tmp_path, f"{bucket}/survey", run, TEXT), override, environment=identity)
    assert code == 1
    assert output.startswith("error: ")
    assert message in output
    assert len(output.splitlines()) == 1, output
    assert Store(run).list() == []


@pytest.mark.slow
def test_a_damaged_shard_on_object_storage_is_named(bucket: str, tmp_path: Path) -> None:
    source, damaged, run = Store(f"{bucket}/survey"), Store(f"{bucket}/damaged"), f"{bucket}/runs/damaged"
    for entry in source.list():
        data = source.read(entry.name)
        damaged.put(entry.name, data[: len(data) // 2] if entry.name == "train-000001.tar" else data)
    text = TEXT.replace("width: 128, depth: 3", "width: 32, depth: 1")
    code, output = run_command(write_config(tmp_path, damaged.url, run, text))
    assert code == 1
    assert "Traceback" not in output
    assert "restarts left" not in output
    error = event(run, "failed")[0]["error"]
    assert "rank " in error
    assert "damaged/train-000001.tar" in error
