"""Workers as actors of Ray Train, in a cluster that is there (RAY_ADDRESS) or one started on this machine."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import FrameType
from typing import Any

from astroclip_dist.config import RunConfig
from astroclip_dist.errors import ConfigError, UserError
from astroclip_dist.store import Store, normalize_url
from astroclip_dist.train.event_log import EVENTS_FILE, EventLog, read_events
from astroclip_dist.train.preemption import Notice
from launchers.exit_codes import PREEMPTED
from launchers.leaving import INTERRUPTED, LeaveSignals
from launchers.ray import ENDS_WITH_RUN

# How often a run with fewer workers than it could have looks for room: each growth costs a restart.
_RESIZE_CHECK_S = 30.0
# For a head that is being started again.
_HEAD_S = 30.0
_CONNECT_S = 5.0
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # How often the controller looks at its workers; the default of 2 s adds to every restart.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Our scaling policy looks for drained nodes itself; Ray's watcher is one more process for each start of workers.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Of a connection that breaks because a rank is gone, torch would tell in stack traces of C++.
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
log = logging.getLogger(__name__)


class RayWorkers:
    """Ray Train starts the workers, sets up their process group, and restarts them when one fails.

    What Ray does not retry (its controller's own death, a process group that cannot be set up) and what it does not
    know (workers that left because they were asked to, with their state saved) starts the workers again from here.
    """

    def run(self, config: RunConfig) -> int:
        """Train to the end.

        Returns:
            The exit code of the command: 0, 1; 75 when it was told to end and the state is saved; 130 when Ctrl-C
            told it.

        Raises:
            ConfigError: this version of Ray is built differently.
            UserError: of a worker; a restart would not mend it.
        """
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            from ray.exceptions import RayError
            from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

            from launchers.ray.callbacks import cause_in_words, write_restart
            from launchers.ray.sizes import LeavingError
        except ImportError as error:
            there = f"Ray {version('ray')} ({error})"
            raise ConfigError("launcher", there, "Install Ray 2.60, for which this launcher is.") from error

        signals = _Signals()
        run = Store(config.run)
        restarts_before = _restarts(run)
        while True:
            left = config.health.max_restarts - (_restarts(run) - restarts_before)
            try:
                # Signals after Ray, which takes SIGTERM for itself when it connects.
                with _cluster(config) as own_cluster, signals:
                    code = _fit(config, max(left, 0), signals.notice, own_cluster)
            except (TrainingFailedError, RayError) as error:
                if isinstance(error, ControllerError) and isinstance(error.controller_failure, UserError):
                    raise error.controller_failure from error
                cause = cause_in_words(error)
                if signals.notice.reason is None:
                    # Of the workers' failures Ray has counted; the others count here.
                    if isinstance(error, WorkerGroupError) or left <= 0:
                        log.error("giving up: %s", error)
                        with EventLog(run) as events:
                            events.write("failed", error=f"{cause}; no restarts left")
                        return 1
                    write_restart(config.run, cause)
                    continue
                if isinstance(error, ControllerError) and isinstance(error.controller_failure, LeavingError):
                    log.info("left while the run had no workers: there was nothing to save")
                else:
                    log.warning("left without a save (%s): the steps since the last checkpoint are done again", cause)
                code = PREEMPTED
            if code != PREEMPTED:
                return code
            if signals.notice.reason is not None:
                log.info("the same command goes on with the run")
                return INTERRUPTED if signals.interrupted else PREEMPTED


class _Signals(LeaveSignals):
    """A second Ctrl-C ends the wait for the training, in whatever call of Ray it is."""

    def _received(self, number: int, frame: FrameType | None) -> None:
        super()._received(number, frame)
        if self.at_once:
            raise KeyboardInterrupt


def _fit(config: RunConfig, max_failures: int, notice: Notice, own_cluster: bool) -> int:
    """Start the workers, restart them at most ``max_failures`` times, and give the first rank's exit code."""
    import ray
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import FailureConfig, ScalingConfig
    from ray.train.v2.api.config import RunConfig as RayRunConfig

    from launchers.ray.callbacks import RestartRecord, StopOnUserError
    from launchers.ray.request import LeaveRequest
    from launchers.ray.sizes import RunSizes, RunTrainer
    from launchers.ray.worker import train_on_worker

    # The cluster's, for this process may be on a head without any.
    use_gpu = config.device == "cuda" or (config.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    sizes = config.world_sizes
    scaling = ScalingConfig(
        num_workers=(sizes[0], sizes[-1]), use_gpu=use_gpu, elastic_resize_monitor_interval_s=_RESIZE_CHECK_S
    )
    request = LeaveRequest()
    with tempfile.TemporaryDirectory(prefix="astroclip-ray-") as scratch, request.passing_on(notice):
        trainer = RunTrainer(
            train_on_worker,
            sizes=RunSizes(scaling, sizes, request, normalize_url(config.run)),
            own_cluster=own_cluster,
            train_loop_config={"config": config.model_dump_json()},
            torch_config=TorchConfig(
                backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo",
                timeout_s=int(config.health.startup_timeout),
            ),
            scaling_config=scaling,
            run_config=RayRunConfig(
                name=normalize_url(config.run).rsplit("/", 1)[-1],
                # Our checkpoints go to the run folder; Ray keeps only its own bookkeeping here.
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=max_failures),
                # Ray says that it takes public callbacks alone, and passes the others on.
                callbacks=[StopOnUserError(), RestartRecord(config.run)],  # type: ignore[list-item]
            ),
        )
        # Typed as the result of Ray's older trainer, which has none.
        return trainer.fit().return_value  # type: ignore[attr-defined]


@contextmanager
def _cluster(config: RunConfig) -> Iterator[bool]:
    """Connected to the cluster at RAY_ADDRESS, or to one on this machine that ends with the block.

    Yields:
        Whether it is one that ends with the block, or with the job that this process is of.
    """
    import ray

    address = os.environ.get("RAY_ADDRESS")
    if address:
        _find_head(address)
    try:
        ray.init(
            address=address,
            log_to_driver=True,
            logging_level=logging.WARNING,
            **({} if address else _local_cluster(config.workers)),
        )
    except ConnectionError as error:
        raise ConfigError("RAY_ADDRESS", address, "No Ray cluster answers there: start it, or unset it.") from error
    try:
        yield not address or os.environ.get(ENDS_WITH_RUN) == "1"
    finally:
        ray.shutdown()


def _find_head(address: str) -> None:
    """Return when something listens there: Ray itself would look for more than three minutes.

    Raises:
        ConfigError: nothing does.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdigit():
        return
    deadline = time.monotonic() + _HEAD_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                mend = f"No Ray cluster answers there ({error}): start it, or unset it."
                raise ConfigError("RAY_ADDRESS", address, mend) from error
        time.sleep(1)


def _local_cluster(workers: int) -> dict[str, Any]:
    """A Ray of this machine alone, on loopback, with no processes beside those that a training needs."""
    return {
        "num_cpus": workers + 1,
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
    }


def _restarts(run: Store) -> int:
    """How often the run was restarted after a failure, in its whole life."""
    if not run.exists(EVENTS_FILE):
        return 0
    return sum(event["event"] == "restarting" for event in read_events(run))
