"""Time that a training step spends on the loop, tracking and health, over that of the bare step.

The loop runs as it does in training, with MLflow in a SQLite file, journal and quarantine, on one rank. Its own calls
of prepare, accumulate, the engine's step and what follows it are timed: they are the bare step. Waiting for data and
checkpoints have measures of their own. All else between the ends of two steps is overhead, and so is all CPU time of
the thread that talks to MLflow, as if it ran on the training's own core. So both are of the same steps, where times of
whole steps on a busy machine differ by more than what is looked for; these are shown below, taken in turn.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from astroclip_dist.config import RunConfig, parse_config
from astroclip_dist.data.streaming.stream import Batch
from astroclip_dist.parallel.engines import StepRates
from astroclip_dist.parallel.process_group import join, leave
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import Progress
from astroclip_dist.train.journal import Journal
from astroclip_dist.train.loop import _Training
from astroclip_dist.train.preemption import Notice
from astroclip_dist.train.run_folder import register
from tests.benchmarks.result import Result, Size, paired_ratio, print_result, size_asked_for
from tests.random_survey import write_random_survey

BATCH, LOG_EVERY = 16, 10
BARE = ("prepare", "accumulate", "engine.step", "after_step")
# width and depth of the encoders, steps of a round, rounds
SIZES: dict[Size, tuple[int, int, int, int]] = {
    "small": (32, 1, 20, 1),
    "default": (192, 8, 30, 3),
    "large": (384, 12, 60, 10),
}


class TimedLoop:
    """The training loop, whose parts are timed in every step.

    Attributes:
        parts: seconds of each part, a number for each step of the last round.
        batches: of the last round.
    """

    def __init__(self, config: RunConfig, training: _Training, journal: Journal) -> None:
        self._config, self._training, self._journal = config, training, journal
        self.parts: dict[str, list[float]] = defaultdict(list)
        self.batches: list[Batch] = []
        self._progress, self._ended = Progress(), 0.0
        (self._tracker,) = [thread for thread in threading.enumerate() if thread.name == "mlflow-tracker"]
        self._step_of_journal = journal.step
        journal.step = self._end_of_step  # type: ignore[method-assign]
        objective = training.objective
        self._prepare = objective.prepare
        objective.prepare = self._prepare_and_keep  # type: ignore[method-assign]
        for owner, name, part in (
            (objective, "accumulate", "accumulate"),
            (training.engine, "step", "engine.step"),
            (objective, "after_step", "after_step"),
        ):
            setattr(owner, name, self._timed(part, getattr(owner, name)))

    def round(self, steps: int) -> float:
        """Some steps of the loop; CPU seconds of the tracker's thread until it has sent what they logged."""
        self.parts.clear()
        self.batches.clear()
        total = self._progress.step + steps
        self._training.steps = replace(self._training.steps, total=total)
        began = self._tracker_seconds()
        self._ended = time.perf_counter()
        self._progress, _ = self._training._steps(self._progress, self._journal)
        time.sleep(2.5)  # it sends once a second
        return self._tracker_seconds() - began

    def bare(self, batch: Batch, number: int) -> float:
        """Seconds of the same step without the loop."""
        training, rates = self._training, StepRates(1e-4, 0.05)
        began = time.perf_counter()
        inputs = self._prepare(batch)
        training.objective.accumulate(training.engine, inputs, number)["loss"].item()  # type: ignore[union-attr]
        training.engine.step(rates).item()
        training.objective.after_step(training.engine, number)
        return time.perf_counter() - began

    def _end_of_step(self, progress: Progress, terms: Any, waited_s: float, took_s: float) -> None:
        began = time.perf_counter()
        self._step_of_journal(progress, terms, waited_s, took_s)
        now = time.perf_counter()
        self.parts["journal"].append(now - began)
        self.parts["data"].append(waited_s)
        self.parts["whole"].append(now - self._ended)
        self._ended = now

    def _prepare_and_keep(self, batch: Batch) -> Any:
        self.batches.append(batch)
        return self._timed("prepare", self._prepare)(batch)

    def _timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args)
            finally:
                self.parts[part].append(time.perf_counter() - began)

        return timed

    def _tracker_seconds(self) -> float:
        assert self._tracker.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(self._tracker.ident))


def by_interval(times: list[float], steps: int) -> float:
    """Seconds a step: the median over intervals of as many steps as lie between two that are logged. The first interval
    of each round, in which the reading of data begins, is left out."""
    starts = [start for start in range(0, len(times), LOG_EVERY) if start % steps]
    return statistics.median(statistics.fmean(times[start : start + LOG_EVERY]) for start in starts)


def main() -> None:
    width, depth, steps, rounds = SIZES[size_asked_for(__doc__)]
    overheads: dict[str, list[float]] = defaultdict(list)
    bare: list[float] = []
    whole: list[float] = []
    alone: list[float] = []
    with tempfile.TemporaryDirectory(prefix="astroclip-step-overhead-") as folder:
        write_random_survey(f"{folder}/data", 20 * BATCH)
        config = parse_config(
            f"data: {folder}/data\nrun: {folder}/run\ndevice: cpu\nlength: 1 steps\n"
            f"batch: {{global_size: {BATCH}, lanes: 2}}\n"
            f"objective:\n  image: {{crop: 24, patch: 4, width: {width}, depth: {depth}, heads: 4}}\n"
            f"  spectrum: {{slice_size: 8, slice_stride: 4, width: {width}, depth: {depth}, heads: 4}}\n"
            f"  head: {{embedding: {width}}}\noptimizer: {{lr: 1e-4}}\ncheckpoint: {{every: 1000000 steps}}\n"
            f"tracking: {{uri: 'sqlite:///{folder}/mlflow.db', log_every: {LOG_EVERY}}}\n",
            "step_overhead",
        )
        store = Store(config.run)
        register(store, config)
        ranks = join("cpu", 60.0)
        training = _Training(config, ranks, Notice())
        with Journal(config, store, ranks, 10**6, flops=1e9) as journal:
            journal.started(Progress(), training.order.steps_per_epoch)
            loop = TimedLoop(config, training, journal)
            loop.round(LOG_EVERY)  # what a first step allocates and compiles
            for _ in range(rounds):
                tracker = loop.round(steps)
                parts = {part: list(times) for part, times in loop.parts.items()}
                alone += [loop.bare(batch, number) for number, batch in enumerate(loop.batches)]
                whole += [w - d for w, d in zip(parts["whole"], parts["data"], strict=True)]
                bare += [sum(times) for times in zip(*(parts[part] for part in BARE), strict=True)]
                overheads["journal"] += parts["journal"]
                overheads["thread of MLflow, CPU"] += [tracker / steps] * steps
        leave(ranks)
    between = [w - b - j for w, b, j in zip(whole, bare, overheads["journal"], strict=True)]
    overheads = {"loop: agreeing, rates, counting": between, **overheads}
    costs = {part: by_interval(times, steps) for part, times in overheads.items()}
    step = by_interval(bare, steps)
    rows: list[list[object]] = [[part, 1e6 * cost, f"{cost / step:.3%}"] for part, cost in costs.items()]
    rows.append(["bare step", 1e6 * step, "100 %"])
    print_result(
        Result("step_overhead", sum(costs.values()) / step, "<= 0.01"),
        f"encoders {width} wide, {depth} deep, batch {BATCH}, metrics every {LOG_EVERY} steps; {rounds} rounds of "
        f"{steps} steps, microseconds a step, medians over intervals of {LOG_EVERY} steps",
        ["", "us", "of the bare step"],
        rows,
        [f"whole steps in turn, loop over bare, median: {paired_ratio(whole, alone):.4f} (as noisy as the machine is)"],
    )


if __name__ == "__main__":
    main()
