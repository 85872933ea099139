"""MLflow behind a queue: training never waits for the tracking server, and no record is lost or doubled.

Rank 0 alone tracks. One thread talks to MLflow; ``log_*`` only append to its list. While the server is away, records go
as small objects into ``tracking/`` of the run folder, and are sent in order once it answers: by this process, by the
next one that opens the run, or by ``astroclip runs sync``. ``keep`` puts there what MLflow does not have yet, too: what
was logged before a checkpoint must outlive the process once the checkpoint counts, since nobody computes it again.
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
from typing import TYPE_CHECKING, Any

from astroclip_dist.errors import ConfigError, StorageError, UserError
from astroclip_dist.store import Store
from astroclip_dist.train.event_log import EVENTS_FILE, read_events
from astroclip_dist.train.records import PARAM_LENGTH, Record, mask, now_ms
from astroclip_dist.train.run_folder import TRACKING_FILE
from astroclip_dist.train.spool import Spool

if TYPE_CHECKING:
    # Imported by the thread that talks to it: it takes seconds, in which training is to begin.
    from astroclip_dist.train.mlflow_run import MlflowRun

START_DEADLINE_S = 20.0
SEND_INTERVAL_S = 1.0
KEEP_DEADLINE_S = 10.0
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
_STATUS_OF_LAST_EVENT = {"failed": "FAILED", "preempted": "SCHEDULED"}
_log = logging.getLogger(__name__)


class Tracker:
    """The MLflow run of a run folder, the same across restarts: made by ``Tracker.open``, ended by ``close``."""

    def __init__(self, store: Store, tracking_uri: str, experiment: str, run_name: str) -> None:
        self._spool = Spool(store)
        self._began_ms = _began_ms(store, self._spool)
        self._where = (store, tracking_uri, experiment, run_name, self._began_ms)
        self._run: MlflowRun | None = None
        self._lock, self._keeping = threading.Lock(), threading.Lock()
        self._pending: list[Record] = [_status("RUNNING")]
        # How many records have left the list so far, to MLflow or to the run folder.
        self._gone = 0
        self._refused: Exception | None = None
        self._closing, self._first_try = threading.Event(), threading.Event()
        self._deadline = math.inf
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
        _configure_client()
        tracker = cls(store, tracking_uri, experiment, run_name)
        tracker._thread.start()
        # Where the run is known already, training begins meanwhile: a restart is not to wait for MLflow's imports.
        if not store.exists(TRACKING_FILE):
            tracker._first_try.wait(START_DEADLINE_S)
        tracker._check_refused()
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
        """Values at an optimizer step; returns at once. A metric's steps must grow: MLflow gets each only once.

        Raises:
            ConfigError: the server has refused since ``open``.
        """
        self._check_refused()
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

    def keep(self) -> bool:
        """Let everything that was logged so far outlive this process: what MLflow does not have yet goes to the run
        folder. Waits for the storage, so it is not for the training loop's thread; safe in any other.

        Returns:
            False when the run folder takes no records; they stay in memory.
        """
        # The list stays free while the storage takes its time: the training loop must not wait for it.
        with self._keeping:
            batch, until = self._batch()
            if not batch:
                return True
            try:
                self._spool.append(batch)
            except StorageError as error:
                _log.error("neither MLflow nor the run folder take records, they stay in memory: %s", error)
                return False
            self._forget(until)
        return True

    def close(self, status: str = "FINISHED", deadline_s: float = 30.0) -> int:
        """Send what waits and set the run's status: FINISHED, FAILED, KILLED, or SCHEDULED if it is to be requeued.

        Returns:
            How many batches could not be sent by the deadline. They lie in the run folder, and the next process that
            opens the run sends them, or ``astroclip runs sync``.
        """
        self._add([_status(status)])
        self._deadline = time.monotonic() + deadline_s
        self._closing.set()
        self._thread.join(deadline_s)
        if self._pending:
            # MLflow holds the thread up, and so might the storage.
            keeper = threading.Thread(target=self.keep, name="mlflow-keeper", daemon=True)
            keeper.start()
            keeper.join(min(deadline_s, KEEP_DEADLINE_S))
        if self._pending:
            _log.error("%d records for MLflow are lost: neither it nor the run folder takes them", len(self._pending))
        if unsent := len(self._spool):
            _log.warning(
                "MLflow is away: %d batches wait in %s; when it is back: astroclip runs sync %s",
                unsent,
                self._spool.url,
                self._where[0].url,
            )
        return len(self._spool)

    def _check_refused(self) -> None:
        if self._refused is not None:
            raise _in_words(self._refused, self._where[1])

    def _add(self, records: list[Record]) -> None:
        with self._lock:
            self._pending.extend(records)

    def _batch(self) -> tuple[list[Record], int]:
        """The records in memory, and the count of all records up to their last."""
        with self._lock:
            return list(self._pending), self._gone + len(self._pending)

    def _forget(self, until: int) -> None:
        """These records have left; while some were on their way to MLflow, they may have gone to the run folder."""
        with self._lock:
            done = max(0, until - self._gone)
            del self._pending[:done]
            self._gone += done

    def _work(self) -> None:
        from astroclip_dist.train.machine_metrics import MachineMetrics

        machine = MachineMetrics()
        # Intervals since the run began, so that the count goes on across restarts; a jump of the clock is none.
        before_s = max(0.0, (now_ms() - self._began_ms) / 1000) - time.monotonic()
        next_sample = time.monotonic() + SEND_INTERVAL_S
        next_try, pause = 0.0, SEND_INTERVAL_S
        while self._refused is None and time.monotonic() < self._deadline:
            # Looked at before the list: whatever was logged before close() is then in it.
            closing = self._closing.is_set()
            if time.monotonic() >= next_sample and not closing:
                next_sample += SYSTEM_INTERVAL_S
                self.log_metrics(int((before_s + time.monotonic()) / SYSTEM_INTERVAL_S), machine.sample())
            if closing or time.monotonic() >= next_try:
                try:
                    self._send_all()
                    if closing:
                        return
                    pause = SEND_INTERVAL_S
                except Exception as error:  # whatever MLflow's stores raise: training must not fail for it
                    if pause == SEND_INTERVAL_S and self._refused is None:
                        _log.warning("records for MLflow wait in the run folder: %s", mask(str(error))[:200])
                    pause = min(2 * pause, LONGEST_PAUSE_S)
                    if self._refused is None:
                        self.keep()
                next_try = time.monotonic() + pause
                self._first_try.set()
            time.sleep(SEND_INTERVAL_S) if closing else self._closing.wait(SEND_INTERVAL_S)

    def _send_all(self) -> None:
        try:
            from astroclip_dist.train.mlflow_run import MlflowRun

            self._run = self._run or MlflowRun.connect(*self._where)
        except Exception as error:
            if _is_refusal(error) and not self._first_try.is_set():
                self._refused = error
            raise
        while True:
            _send_spool(self._run, self._spool)
            batch, until = self._batch()
            if not batch and not len(self._spool):
                return
            _send(self._run, batch)
            self._forget(until)


def send_unsent(store: Store, tracking_uri: str, experiment: str, run_name: str) -> tuple[int, str | None]:
    """Send what processes that have ended left in the run folder: records in order, then the run's status.

    The caller holds the run: if MLflow still has it as running, its first rank was killed, and the end is told here.

    Returns:
        How many batches were sent, and what a run that nobody runs was ended as in MLflow (None: MLflow knew it).

    Raises:
        ConfigError: the server answered and refused.
        StorageError: the server does not answer, or the run folder does not; the rest stays for another time.
    """
    from astroclip_dist.train.mlflow_run import MlflowRun

    _configure_client()
    spool = Spool(store)
    unsent = len(spool)
    if not unsent and not store.exists(TRACKING_FILE):
        return 0, None
    try:
        run = MlflowRun.connect(store, tracking_uri, experiment, run_name, _began_ms(store, spool))
        _send_spool(run, spool)
        status = _last_status(store)
        return unsent, status if run.end(status) else None
    except UserError:
        raise
    except Exception as error:
        if _is_refusal(error):
            raise _in_words(error, tracking_uri) from error
        why = mask(str(error)).splitlines()[0][:300]
        raise StorageError(
            "tracking.uri", mask(tracking_uri), f"{len(spool)} of {unsent} batches stay: MLflow is away ({why})"
        ) from error


def _last_status(store: Store) -> str:
    """How a run that nobody runs has ended, by its events: without a last word it was killed."""
    kinds = [str(event.get("event")) for event in read_events(store)] if store.exists(EVENTS_FILE) else []
    if "finished" in kinds:
        return "FINISHED"
    return _STATUS_OF_LAST_EVENT.get(kinds[-1], "KILLED") if kinds else "KILLED"


def _configure_client() -> None:
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)


def _is_refusal(error: Exception) -> bool:
    """Whether trying again is no use: the server answered, or what is there is no server."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in REFUSALS
    return not isinstance(error, StorageError)


def _in_words(refusal: Exception, tracking_uri: str) -> ConfigError:
    code = getattr(refusal, "error_code", None)
    if code == "UNAUTHENTICATED":
        mend = "MLflow refuses the login: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
    elif code == "PERMISSION_DENIED":
        user = os.environ.get("MLFLOW_TRACKING_USERNAME", "whose login this is")
        mend = f"MLflow says that {user} may not write there: use another login, or another tracking.experiment."
    else:
        mend = f"It cannot be used: {mask(str(refusal)).splitlines()[0][:300]}"
    return ConfigError("tracking.uri", mask(tracking_uri), mend)


def _send_spool(run: MlflowRun, spool: Spool) -> None:
    while (records := spool.oldest()) is not None:
        _send(run, records)
        spool.drop_oldest()


def _send(run: MlflowRun, records: list[Record]) -> None:
    from mlflow.exceptions import MlflowException

    try:
        run.send(records)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        # It would be refused for ever, and all that follows would wait behind it.
        _log.error("MLflow refuses %d records, they are dropped: %s", len(records), mask(str(error))[:300])


def _status(status: str) -> Record:
    return {"kind": "status", "key": "status", "value": status, "timestamp": now_ms()}


def _began_ms(store: Store, spool: Spool) -> int:
    """When the run began: MLflow may hear of it long afterwards."""
    if store.exists(TRACKING_FILE):
        return json.loads(store.read(TRACKING_FILE))["began_ms"]
    return next((record["timestamp"] for record in spool.oldest() or [] if "timestamp" in record), now_ms())


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
