"""What the outside is told of a running training: metrics for Prometheus, progress for whoever lists jobs.

Only the first rank has one. What it is told it keeps as numbers; everything else happens in threads, and nothing that
fails there ends the training.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from astroclip_dist import __version__
from astroclip_dist.config import RunConfig
from astroclip_dist.errors import ConfigError, StorageError
from astroclip_dist.store import MissingObjectError, Store
from astroclip_dist.train.checkpoint import Progress
from astroclip_dist.train.event_log import read_events
from astroclip_dist.train.health.skips import NOT_FINITE, SPIKE
from astroclip_dist.train.heartbeat import Heartbeat
from astroclip_dist.train.metrics import RunMetrics
from astroclip_dist.train.progress_file import ProgressFile

if TYPE_CHECKING:
    # Imported where it is asked for: not every training needs an HTTP server.
    from astroclip_dist.train.exporter import HttpExporter

# Ray forgets a gauge after 20 s.
_RAY_INTERVAL_S = 5.0
_READ_DEADLINE_S = 10.0
# A figure that is logged -> its metric, and how many of its units the log's unit is.
_LOGGED = {
    "memory_gb": ("astroclip_memory_bytes", 1e9),
    "mfu": ("astroclip_mfu_ratio", 1.0),
    "slowest_rank": ("astroclip_slowest_rank", 1.0),
    "slowest_over_median": ("astroclip_slowest_over_median_ratio", 1.0),
    "quarantined_samples": ("astroclip_quarantined_samples", 1.0),
}
# A term of every step -> its metric.
_TERMS = {"loss": "astroclip_loss", "gradient_norm": "astroclip_gradient_norm", "lr": "astroclip_learning_rate"}
log = logging.getLogger(__name__)


class Monitor:
    """Opened before the run's first event of this attempt is written, ended by ``close``.

    Args:
        quarantine_budget: samples that may be put aside over the whole run.

    Attributes:
        endpoint: where Prometheus is answered; None where nobody asked for one.
        failure: why there is no endpoint for Prometheus although one is asked for.
    """

    def __init__(
        self, config: RunConfig, run: Store, world_size: int, total_steps: int, quarantine_budget: int
    ) -> None:
        self._config = config
        self._saved_step = 0
        self.metrics = metrics = RunMetrics(run.url)
        for name, value in (
            ("target_steps", total_steps),
            ("world_size", world_size),
            ("skipped_steps_budget", config.health.skipped_steps_budget),
            ("quarantine_budget_samples", quarantine_budget),
        ):
            metrics.set(f"astroclip_{name}", value)
        engine = config.engine
        info = (config.objective.name, engine.name, engine.precision, config.launcher, str(world_size), __version__)
        metrics.set("astroclip_run_info", 1.0, *info)
        # A counter that appears with its first event seems never to have grown.
        for kind in (NOT_FINITE, SPIKE):
            metrics.set("astroclip_skipped_steps_total", 0.0, kind)
        metrics.set("astroclip_saves_total", 0.0)
        self._tell_of_attempts(run)
        self._heartbeats: list[Heartbeat] = []
        self.endpoint: HttpExporter | None = None
        self.failure: str | None = None
        progress = ProgressFile(run, metrics, config.batch.global_size)
        self._heartbeats.append(Heartbeat("progress.json", progress.write, progress.interval_s))

    def started(self, progress: Progress, steps_per_epoch: int) -> None:
        """Training begins at a step; from now on others are told."""
        metrics, now = self.metrics, time.time()
        for name in ("start", "last_step", "last_save"):
            metrics.set(f"astroclip_{name}_time_seconds", now)
        # Nothing has grown yet, and that is to be seen.
        for name in ("steps", "samples", "step_seconds", "data_wait_seconds"):
            metrics.set(f"astroclip_{name}_total", 0.0)
        every = self._config.checkpoint.every.steps(self._config.batch.global_size, steps_per_epoch)
        metrics.set("astroclip_save_every_steps", every)
        self._saved_step = progress.step
        self._reached(progress)
        self._export()

    def step(self, progress: Progress, terms: Mapping[str, float | Tensor], waited_s: float, took_s: float) -> None:
        """One step; terms that lie on a device stay there."""
        metrics = self.metrics
        metrics.set("astroclip_last_step_time_seconds", time.time())
        metrics.add("astroclip_steps_total", 1)
        metrics.add("astroclip_samples_total", self._config.batch.global_size)
        metrics.add("astroclip_step_seconds_total", took_s)
        metrics.add("astroclip_data_wait_seconds_total", waited_s)
        for term, name in _TERMS.items():
            value = terms.get(term)
            if isinstance(value, float):
                metrics.set(name, value)
        self._reached(progress)

    def logged(self, values: Mapping[str, float]) -> None:
        """What was written down of an interval of steps."""
        for figure, (name, scale) in _LOGGED.items():
            if figure in values and math.isfinite(values[figure]):
                self.metrics.set(name, scale * values[figure])

    def skipped(self, kind: str) -> None:
        self.metrics.add("astroclip_skipped_steps_total", 1, kind)

    def saved(self, progress: Progress) -> None:
        """A checkpoint of a step, at or before the last one, is complete."""
        self.metrics.set("astroclip_last_save_time_seconds", time.time())
        self.metrics.add("astroclip_saves_total", 1)
        self._saved_step = progress.step
        self.metrics.set("astroclip_unsaved_steps", (self.metrics.get("astroclip_step") or 0.0) - progress.step)

    def close(self, *, over: bool, deadline_s: float) -> None:
        """
        Args:
            over: whether somebody knows that it ended. Else a restart is due, and its absence is to be noticed.
            deadline_s: for the last words.
        """
        if over:
            self.metrics.set("astroclip_end_time_seconds", time.time())
        until = time.monotonic() + deadline_s
        for heartbeat in self._heartbeats:
            heartbeat.close(max(0.1, until - time.monotonic()))
        if self.endpoint is not None:
            self.endpoint.close(over=over)

    def _reached(self, progress: Progress) -> None:
        self.metrics.set("astroclip_step", progress.step)
        self.metrics.set("astroclip_unsaved_steps", progress.step - self._saved_step)
        self.metrics.set("astroclip_run_skipped_steps", progress.skipped_steps)

    def _export(self) -> None:
        if self._config.metrics.port is not None:
            from astroclip_dist.train.exporter import HttpExporter

            try:
                self.endpoint = HttpExporter(self.metrics, self._config.metrics)
                log.info("metrics at %s", self.endpoint.url)
            except ConfigError as error:
                # A run that goes on unwatched is better than none; but it is said.
                self.failure = str(error)
                log.error("nobody watches this run: %s", error)
        if self._config.launcher == "ray":
            from astroclip_dist.train.ray_exporter import RayExporter

            self._heartbeats.append(Heartbeat("metrics for Ray", RayExporter(self.metrics).push, _RAY_INTERVAL_S))

    def _tell_of_attempts(self, run: Store) -> None:
        """How often the run was started again so far, and after what, by its events."""
        try:
            events = read_events(Store(run.url, _READ_DEADLINE_S))
        except MissingObjectError:
            events = []
        except StorageError as error:
            log.warning("restarts cannot be counted: %s", error)
            return
        kinds = [event.get("event") for event in events]
        left, restarted = kinds.count("preempted"), kinds.count("restarting")
        begun = kinds.count("started") + kinds.count("resumed") - left - kinds.count("finished")
        # Of those that died before they could say that they began, the launcher has told.
        self.metrics.set("astroclip_restarts_total", max(begun, restarted, 0), "failure")
        self.metrics.set("astroclip_restarts_total", left, "preemption")
        failed_saves = sum(event.get("event") == "failed" and event.get("phase") == "save" for event in events)
        self.metrics.set("astroclip_save_failures_total", failed_saves)
