"""One run on an MLflow server: found or created, and sent records such that sending them twice changes nothing."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from astroclip_dist.store import Store
from astroclip_dist.train.records import Record, mask
from astroclip_dist.train.run_folder import TRACKING_FILE

# MLflow's own limits of one request and of one value.
METRICS_A_REQUEST, OTHERS_A_REQUEST, TAG_LENGTH = 1000, 100, 8000
ENDED = ("FINISHED", "FAILED", "KILLED")

T = TypeVar("T")


class MlflowRun:
    """The MLflow run of a run folder; every call may raise MlflowException.

    Attributes:
        run_id: MLflow's.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.run_id = run_id
        self._client = client
        run = client.get_run(run_id)
        self._params: dict[str, str] = dict(run.data.params)
        # The latest step of each metric; no public accessor has it short of reading every metric's whole history.
        self._last_step: dict[str, int] = {metric.key: metric.step for metric in run.data._metric_objs}

    @classmethod
    def connect(cls, store: Store, tracking_uri: str, experiment: str, run_name: str, began_ms: int) -> MlflowRun:
        """The run that ``tracking.json`` names; of all processes that ever get here, exactly one creates it.

        Args:
            began_ms: when the run began, which may be long before the server could be reached.
        """
        client = _client(tracking_uri)
        if not store.exists(TRACKING_FILE):
            experiment_id = _experiment_id(client, tracking_uri, experiment)
            run = client.create_run(experiment_id, start_time=began_ms, run_name=run_name)
            identity = {
                "run_id": run.info.run_id,
                "experiment": experiment,
                "tracking_uri": mask(tracking_uri),
                "began_ms": run.info.start_time,
            }
            with suppress(FileExistsError):
                store.put(TRACKING_FILE, json.dumps(identity).encode(), create_only=True)
            # Also after an error: a write whose answer was lost, and which was tried again, finds itself.
            if json.loads(store.read(TRACKING_FILE))["run_id"] != run.info.run_id:
                client.delete_run(run.info.run_id)
        return cls(client, json.loads(store.read(TRACKING_FILE))["run_id"])

    def send(self, records: Sequence[Record]) -> None:
        """Send records in order of kind.

        A metric's steps only grow: what a restarted process computes again, or an interrupted one left in the spool
        after it was sent, is left out. A parameter keeps its first value; a later one becomes the tag ``resumed.KEY``.
        Of several statuses the last one counts.
        """
        metrics = [
            Metric(record["key"], record["value"], record["timestamp"], record["step"])
            for record in records
            if record["kind"] == "metric" and record["step"] > self._last_step.get(record["key"], -1)
        ]
        params = {record["key"]: record["value"] for record in records if record["kind"] == "param"}
        new = {key: value for key, value in params.items() if key not in self._params}
        tags = {f"resumed.{key}": value for key, value in params.items() if self._params.get(key, value) != value}
        tags |= {record["key"]: record["value"] for record in records if record["kind"] == "tag"}
        for some in _batches(metrics, METRICS_A_REQUEST):
            self._client.log_batch(self.run_id, metrics=some)
            self._last_step |= {metric.key: metric.step for metric in some}
        for items in _batches(list(new.items()), OTHERS_A_REQUEST):
            self._client.log_batch(self.run_id, params=[Param(key, value) for key, value in items])
        self._params |= new
        for items in _batches(list(tags.items()), OTHERS_A_REQUEST):
            self._client.log_batch(self.run_id, tags=[RunTag(key, value[:TAG_LENGTH]) for key, value in items])
        for record in records:
            if record["kind"] == "artifact":
                self._send_artifact(record["key"], base64.b64decode(record["value"]))
        statuses = [record for record in records if record["kind"] == "status"]
        if statuses:
            self._send_status(statuses[-1]["value"], statuses[-1]["timestamp"])

    def end(self, status: str) -> bool:
        """Give a run that nobody runs its status, if MLflow has it as running; it ended when MLflow last heard of it.

        Returns:
            Whether MLflow had it as running.
        """
        run = self._client.get_run(self.run_id)
        if run.info.status != "RUNNING":
            return False
        heard = [metric.timestamp for metric in run.data._metric_objs]
        self._send_status(status, max([run.info.start_time, *heard]))
        return True

    def _send_status(self, status: str, when_ms: int) -> None:
        if status in ENDED:
            self._client.set_terminated(self.run_id, status, end_time=when_ms)
        else:
            self._client.update_run(self.run_id, status=status)

    def _send_artifact(self, name: str, content: bytes) -> None:
        folder, _, base = name.rpartition("/")
        with tempfile.TemporaryDirectory() as aside:
            path = Path(aside, base)
            path.write_bytes(content)
            self._client.log_artifact(self.run_id, str(path), folder or None)


def read_history(store: Store, key: str) -> list[tuple[int, float]]:
    """All (step, value) of a metric of the run whose folder this is, by step; from ``MLFLOW_TRACKING_URI``, or else
    from where the run was tracked.

    Raises:
        MissingObjectError: the folder has no tracked run.
        MlflowException: the server does not answer or has no such run.
    """
    identity = json.loads(store.read(TRACKING_FILE))
    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or identity["tracking_uri"])
    return sorted((point.step, point.value) for point in client.get_metric_history(identity["run_id"], key))


def _client(tracking_uri: str) -> MlflowClient:
    """MLflow makes the tables of a new SQLite file when first asked: of processes that ask at once, one succeeds."""
    database = _sqlite_file(tracking_uri)
    if database is None:
        return MlflowClient(tracking_uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f".{database.name}.lock").open("w") as lock:
        # Where the file system has no locks, the race stays.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        client = MlflowClient(tracking_uri)
        client.search_experiments(max_results=1)
    return client


def _sqlite_file(tracking_uri: str) -> Path | None:
    return Path(urlsplit(tracking_uri).path[1:]) if tracking_uri.startswith("sqlite:") else None


def _experiment_id(client: MlflowClient, tracking_uri: str, name: str) -> str:
    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    # Beside its database: MLflow's default would be a folder wherever the process was started.
    database = _sqlite_file(tracking_uri)
    artifacts = None if database is None else (database.resolve().parent / "mlflow-artifacts" / name).as_uri()
    try:
        return client.create_experiment(name, artifact_location=artifacts)
    except MlflowException as error:
        # Another process was faster.
        if error.error_code == "RESOURCE_ALREADY_EXISTS" and (found := client.get_experiment_by_name(name)):
            return found.experiment_id
        raise


def _batches(items: list[T], size: int) -> Iterator[list[T]]:
    return (items[first : first + size] for first in range(0, len(items), size))
