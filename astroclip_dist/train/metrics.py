"""What Prometheus is told of a run: the table of all metrics, and their values in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

# Every metric has it, and its value is the URL of the run folder: what `astroclip runs show` takes.
RUN_LABEL = "run"


@dataclass(frozen=True)
class Metric:
    """
    Attributes:
        kind: a counter grows while the process lives, or over the whole life of the run where its help says so; a gauge
            is what it is now; a time is a moment, in seconds since 1970, that only moves forward.
        labels: beside ``RUN_LABEL``.
    """

    name: str
    kind: Literal["counter", "gauge", "time"]
    help: str
    labels: tuple[str, ...] = ()


_INFO = ("objective", "engine", "precision", "launcher", "world_size", "version")
METRICS = {
    metric.name: metric
    for metric in (
        Metric("astroclip_run_info", "gauge", "1; the labels say what is trained, and how", _INFO),
        Metric("astroclip_start_time_seconds", "time", "when this attempt began to train"),
        Metric("astroclip_end_time_seconds", "time", "when it ended with a word: finished, preempted, a user's error"),
        Metric("astroclip_last_step_time_seconds", "time", "when the last step ended; before the first, the start"),
        Metric("astroclip_last_save_time_seconds", "time", "when the last checkpoint became complete; else the start"),
        Metric("astroclip_steps_total", "counter", "optimizer steps, skipped ones included"),
        Metric("astroclip_samples_total", "counter", "samples of these steps, over all ranks"),
        Metric("astroclip_step_seconds_total", "counter", "spent in steps, data and logging included"),
        Metric("astroclip_data_wait_seconds_total", "counter", "of these, the first rank's waiting for data"),
        Metric("astroclip_skipped_steps_total", "counter", "steps that were not applied", ("kind",)),
        Metric("astroclip_saves_total", "counter", "checkpoints that became complete"),
        Metric("astroclip_save_failures_total", "counter", "attempts of the run that a failed save has ended"),
        Metric("astroclip_restarts_total", "counter", "attempts of the run before this one, by their end", ("after",)),
        Metric("astroclip_step", "gauge", "the last step, of the whole run"),
        Metric("astroclip_target_steps", "gauge", "at which the run is done"),
        Metric("astroclip_world_size", "gauge", "ranks"),
        Metric("astroclip_loss", "gauge", "of the last step, over the global batch"),
        Metric("astroclip_gradient_norm", "gauge", "of the last step, over all ranks, before clipping"),
        Metric("astroclip_learning_rate", "gauge", "of the last step"),
        Metric("astroclip_unsaved_steps", "gauge", "done since the last complete checkpoint: what a crash costs"),
        Metric("astroclip_save_every_steps", "gauge", "checkpoint.every, in steps"),
        Metric("astroclip_run_skipped_steps", "gauge", "steps not applied over the whole run"),
        Metric("astroclip_skipped_steps_budget", "gauge", "health.skipped_steps_budget: more end the run"),
        Metric("astroclip_quarantined_samples", "gauge", "put aside over the whole run"),
        Metric("astroclip_quarantine_budget_samples", "gauge", "health.quarantine_budget in samples: more end the run"),
        Metric(
            "astroclip_memory_bytes",
            "gauge",
            "peak of the first rank since the last logged step; of the process on CPU",
        ),
        Metric("astroclip_mfu_ratio", "gauge", "model FLOP/s over the device's peak, where that is known"),
        Metric("astroclip_slowest_rank", "gauge", "which rank spent the longest on its own"),
        Metric("astroclip_slowest_over_median_ratio", "gauge", "its own seconds over those of the median rank"),
    )
}


class Value(NamedTuple):
    """One metric with the values of its own labels."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


class RunMetrics:
    """The values of one run in this process: written by the thread that trains, read by those that export.

    Writing is a few dictionary operations, no lock and no look at a device.

    Args:
        run: URL of the run folder.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self._values: dict[tuple[str, tuple[str, ...]], float] = {}

    def set(self, name: str, value: float, *labels: str) -> None:
        self._values[name, labels] = value

    def add(self, name: str, amount: float, *labels: str) -> None:
        self._values[name, labels] = self._values.get((name, labels), 0.0) + amount

    def get(self, name: str, *labels: str) -> float | None:
        """None for one that was never written."""
        return self._values.get((name, labels))

    def read(self) -> list[Value]:
        """All values at this moment, in the order of the table."""
        # One call into the interpreter's C code: no writer can come in between.
        values = list(self._values.items())
        order = {name: place for place, name in enumerate(METRICS)}
        values.sort(key=lambda item: (order[item[0][0]], item[0][1]))
        return [Value(METRICS[name], labels, value) for (name, labels), value in values]
