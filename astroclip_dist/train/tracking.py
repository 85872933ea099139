"""MLflow behind a queue: training never waits for the tracking server, and no record is lost or doubled.

Rank 0 alone tracks. One thread talks to MLflow; ``log_*`` only append to its list. While the server is away, records go
as small objects into ``tracking/`` of the run folder, and are sent in order once it answers: by this process or by the
next one that opens the run.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from astroclip_dist.errors import ConfigError, StorageError
from astroclip_dist.store import Store
from astroclip_dist.train.machine_metrics import MachineMetrics
from astroclip_dist.train.mlflow_run import PARAM_LENGTH, MlflowRun, Record, mask, now_ms
from astroclip_dist.train.run_folder import SPOOL_FOLDER, TRACKING_FILE

START_DEADLINE_S = 20.0
SEND_INTERVAL_S = 1.0
LONGEST_PAUSE_S = 10.0
SYSTEM_INTERVAL_S = 10.0
CLIENT_SETTINGS = {
    # By default a call to a dead server blocks for four minutes; the thread does the retrying here.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
REFUSALS = ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_PARAMETER_VALUE")
_log = logging.getLogger(__name__)


class Tracker:
    """The MLflow run of a run folder, the same across restarts: made by ``Tracker.open``, ended by ``close``."""

    def __init__(self, store: Store, tracking_uri: str, experiment: str, run_name: str) -> None:
        self._store = store
        self._where = (store, tracking_uri, experiment, run_name)
        self._run: MlflowRun | None = None
        self._lock, self._spooling = threading.Lock(), threading.Lock()
        self._pending: list[Record] = []
        self._spool = [found.name for found in store.list(SPOOL_FOLDER) if found.name.endswith(".jsonl")]
        identity = json.loads(store.read(TRACKING_FILE)) if store.exists(TRACKING_FILE) else {}
        self._began_ms = identity.get("began_ms", now_ms())
        self._refused: Exception | None = None
        self._closing, self._first_try = threading.Event(), threading.Event()
        self._final_status, self._deadline = "FINISHED", math.inf
        self._thread = threading.Thread(target=self._work, name="mlflow-tracker", daemon=True)

    @classmethod
    def open(cls, store: Store, tracking_uri: str, experiment: str, run_name: str) -> Tracker:
        """Create the MLflow run, or take up the one that the run folder names.

        Returns within ``START_DEADLINE_S`` seconds. If the server is away, records are spooled until it is back.

        Args:
            store: the run folder.
            tracking_uri: an MLflow server (``http://``) or ``sqlite:///FILE``; a password in it is never shown.

        Raises:
            ConfigError: the server answered and refused (unknown run, no permission, not a tracking URI).
        """
        for name, value in CLIENT_SETTINGS.items():
            os.environ.setdefault(name, value)
        tracker = cls(store, tracking_uri, experiment, run_name)
        tracker._thread.start()
        tracker._first_try.wait(START_DEADLINE_S)
        if tracker._refused is not None:
            why = mask(str(tracker._refused)).splitlines()[0][:300]
            raise ConfigError("tracking_uri", mask(tracking_uri), f"It cannot be used: {why}")
        return tracker

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None as long as the server has not answered."""
        return None if self._run is None else self._run.run_id

    def log_params(self, config: Mapping[str, Any]) -> None:
        """The resolved configuration, nested keys joined by dots, passwords in URLs masked.

        MLflow's parameters never change: after a restart with another value, the tag ``resumed.KEY`` has it.
        """
        flat = _flatten(config).items()
        self._add([{"kind": "param", "key": key, "value": mask(str(value))[:PARAM_LENGTH]} for key, value in flat])

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Values at an optimizer step; returns at once. A metric's steps must grow: MLflow gets each only once."""
        now = now_ms()
        self._add(
            [
                {"kind": "metric", "key": key, "value": float(value), "timestamp": now, "step": step}
                for key, value in values.items()
            ]
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._add([{"kind": "tag", "key": key, "value": mask(value)} for key, value in tags.items()])

    def log_artifact(self, name: str, content: bytes | Path) -> None:
        """A small file (configuration, figure, table); ``name`` may have folders."""
        data = content if isinstance(content, bytes) else content.read_bytes()
        self._add([{"kind": "artifact", "key": name, "value": base64.b64encode(data).decode()}])

    def close(self, status: str = "FINISHED", deadline_s: float = 30.0) -> int:
        """Send what waits and set the run's status: FINISHED, FAILED, KILLED, or SCHEDULED if it is to be requeued.

        Returns:
            How many batches could not be sent by the deadline. They lie in the run folder, and the next process that
            opens the run sends them.
        """
        self._final_status, self._deadline = status, time.monotonic() + deadline_s
        self._closing.set()
        self._thread.join(deadline_s)
        self._spool_pending()
        if self._spool:
            _log.warning("MLflow is away: %d batches wait in %s", len(self._spool), self._store.locate(SPOOL_FOLDER))
        return len(self._spool)

    def _add(self, records: list[Record]) -> None:
        with self._lock:
            self._pending.extend(records)

    def _work(self) -> None:
        machine = MachineMetrics()
        next_sample = time.monotonic() + SEND_INTERVAL_S
        next_try, pause = 0.0, SEND_INTERVAL_S
        while self._refused is None and time.monotonic() < self._deadline:
            # Looked at before the list: whatever was logged before close() is then in it.
            closing = self._closing.is_set()
            if time.monotonic() >= next_sample:
                next_sample += SYSTEM_INTERVAL_S
                # The step counts intervals since the run began, so that it goes on across restarts.
                elapsed_s = (now_ms() - self._began_ms) / 1000
                self.log_metrics(int(elapsed_s / SYSTEM_INTERVAL_S), machine.sample())
            if closing or time.monotonic() >= next_try:
                try:
                    run = self._send_all()
                    if closing:
                        run.end(self._final_status)
                        return
                    pause = SEND_INTERVAL_S
                except Exception as error:  # whatever MLflow's stores raise: training must not fail for it
                    if pause == SEND_INTERVAL_S and self._refused is None:
                        _log.warning("MLflow is away, records wait in the run folder: %s", mask(str(error))[:200])
                    pause = min(2 * pause, LONGEST_PAUSE_S)
                    self._spool_pending()
                next_try = time.monotonic() + pause
                self._first_try.set()
            time.sleep(SEND_INTERVAL_S) if closing else self._closing.wait(SEND_INTERVAL_S)

    def _send_all(self) -> MlflowRun:
        try:
            self._run = self._run or MlflowRun.connect(*self._where)
        except Exception as error:
            away = isinstance(error, MlflowException) and error.error_code not in REFUSALS
            if not away and not self._first_try.is_set():
                self._refused = error
            raise
        while self._spool:
            self._send(self._run, [json.loads(line) for line in self._store.read(self._spool[0]).splitlines()])
            self._store.delete([self._spool[0]])
            self._spool.pop(0)
        with self._lock:
            batch = list(self._pending)
        self._send(self._run, batch)
        with self._lock:
            del self._pending[: len(batch)]
        return self._run

    def _send(self, run: MlflowRun, records: list[Record]) -> None:
        try:
            run.send(records)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            # It would be refused for ever, and all that follows would wait behind it.
            _log.error("MLflow refuses %d records, they are dropped: %s", len(records), mask(str(error))[:300])

    def _spool_pending(self) -> None:
        # The list stays free while the storage takes its time: the training loop must not wait for it.
        with self._spooling:
            with self._lock:
                batch = list(self._pending)
            if not batch:
                return
            name = f"{SPOOL_FOLDER}/{time.time_ns():020d}.jsonl"
            try:
                self._store.put(name, b"\n".join(json.dumps(record).encode() for record in batch))
            except StorageError as error:
                _log.error("neither MLflow nor the run folder take records, they stay in memory: %s", error)
                return
            self._spool.append(name)
            with self._lock:
                del self._pending[: len(batch)]


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
