"""The training loop: one step from batch to checkpoint, for every objective, engine and launcher."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from astroclip_dist.config import RunConfig
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.data.dataset import Dataset
from astroclip_dist.data.mixture import SampleOrder, order_of
from astroclip_dist.data.quarantine import BadData
from astroclip_dist.data.stream import Stream
from astroclip_dist.errors import ConfigError, DataError
from astroclip_dist.models.flops import sample_flops
from astroclip_dist.objectives import Objective, build_objective
from astroclip_dist.parallel.engines import Engine, StepRates, build_engine
from astroclip_dist.parallel.process_group import Ranks, join, leave
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import Progress, complete_checkpoints, restore, save
from astroclip_dist.train.failure import failing_together
from astroclip_dist.train.journal import Journal
from astroclip_dist.train.pretrained import pretrained_values
from astroclip_dist.train.quarantine import RunQuarantine
from astroclip_dist.train.rates import Rates
from astroclip_dist.train.weights import export_weights

log = logging.getLogger(__name__)


def train(config: RunConfig) -> Progress:
    """Run, or go on with, a training on this rank until its length is reached.

    All ranks call this together, started by a launcher with the variables that ``process_group.join`` reads. The run
    must be registered in its run folder.

    Raises:
        UserError: configuration, data or storage, on the rank that saw it first.
        OtherRankError: on the other ranks.
    """
    ranks = join(config.device, config.health.collective_timeout)
    try:
        # All have joined before any may fail: the first error is to be the one that is shown, not a failed join.
        dist.barrier()
        with failing_together(ranks):
            progress = _Training(config, ranks).run()
    except BaseException:
        # Whoever made the group: the other ranks are to notice at once that this one is gone.
        dist.destroy_process_group()
        raise
    leave(ranks)
    return progress


@dataclass(frozen=True)
class _Outcome:
    """One step: its loss over the global batch, the gradient's norm over all ranks, other terms to log, and the bad
    samples that the ranks told each other of."""

    loss: float
    gradient_norm: float
    terms: dict[str, Tensor | float]
    quarantined: list[BadData]

    @property
    def applied(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class _Training:
    def __init__(self, config: RunConfig, ranks: Ranks) -> None:
        if ranks.world_size != config.workers:
            raise ConfigError("workers", config.workers, f"The launcher started {ranks.world_size} processes.")
        self.config, self.ranks = config, ranks
        self.store = Store(config.run)
        self.dataset = Dataset.open(config.data_urls, ["train"], config.data_weights)
        batch = config.batch
        self.order: SampleOrder = order_of(
            self.dataset,
            seed=config.seed,
            lanes=batch.lanes,
            global_batch=batch.global_size,
            window_shards=batch.window_shards,
        )
        budget = int(config.health.quarantine_budget * self.dataset.shard_samples.sum())
        self.quarantine = RunQuarantine(self.store, ranks, budget)
        length = config.length.steps(batch.global_size, self.order.steps_per_epoch)
        self.steps = RunSteps(length, self.order.steps_per_epoch, batch.global_size)
        self.save_every = self.steps.of(config.checkpoint.every)
        self.rates = Rates(config.optimizer, self.steps)
        self.objective: Objective = build_objective(config, self.dataset, self.steps, ranks.device)
        pretrained = None if complete_checkpoints(self.store) else pretrained_values(config)
        self.engine: Engine = build_engine(config, ranks, self.objective.build(), pretrained)
        self.engine.train()
        image, spectrum = self.dataset.image, self.dataset.spectrum
        self.flops = sample_flops(
            config.objective,
            bands=len(image.bands) if image else 0,
            bins=spectrum.size if spectrum else 0,
            global_batch=batch.global_size,
        ).executed

    def run(self) -> Progress:
        progress = restore(self.store, self.engine, self.objective.state()) or Progress()
        # Failing together within the journal, too: it is to write down the first rank's error.
        with (
            Journal(self.config, self.store, self.ranks, self.steps.total, self.flops) as journal,
            failing_together(self.ranks),
        ):
            journal.started(progress, self.order.steps_per_epoch)
            if progress.step < self.steps.total:
                progress = self._steps(progress, journal)
            if self.ranks.is_first:
                export_weights(self.store)
            journal.finished(progress)
        return progress

    def _steps(self, progress: Progress, journal: Journal) -> Progress:
        with Stream(
            self.dataset,
            self.order,
            self.objective.members,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            cursor=progress.cursor,
            steps=self.steps.total - progress.step,
            reading=self.config.reading,
            quarantine=self.quarantine.local,
        ) as stream:
            while progress.step < self.steps.total:
                began = time.perf_counter()
                batch = next(stream)
                waited = time.perf_counter() - began
                rates = self.rates(progress.step, self.objective.frozen(progress.step))
                inputs = self.objective.prepare(batch)
                outcome = self._step(inputs, progress.step, rates)
                progress = replace(progress, step=progress.step + 1, cursor=self.order.next(progress.cursor))
                if not outcome.applied:
                    progress = replace(progress, skipped_steps=progress.skipped_steps + 1)
                    keys = self._suspects(batch.keys, inputs)
                    journal.skipped(progress, batch.cursor, outcome.loss, outcome.gradient_norm, keys)
                    self._check_skip_budget(progress)
                if outcome.quarantined:
                    journal.quarantined(progress, outcome.quarantined)
                journal.step(
                    progress,
                    {
                        "loss": outcome.loss,
                        "gradient_norm": outcome.gradient_norm,
                        "lr": rates.lr,
                        "weight_decay": rates.weight_decay,
                        "quarantined_samples": self.quarantine.samples,
                        **outcome.terms,
                    },
                    waited_s=waited,
                    took_s=time.perf_counter() - began,
                )
                if progress.step % self.save_every == 0 or progress.step == self.steps.total:
                    saved = save(
                        self.store, self.engine, progress, self.config.checkpoint.keep_last, self.objective.state()
                    )
                    journal.saved(saved, progress)
        return progress

    def _step(self, inputs: Any, step: int, rates: StepRates) -> _Outcome:
        """Forward, backward, agree, apply. Loss and norm are those of all ranks, so all ranks decide alike."""
        terms = self.objective.accumulate(self.engine, inputs, step)
        loss = torch.as_tensor(terms.pop("loss")).float()
        agreed = torch.stack([loss, loss.new_tensor(float(self.quarantine.news))])
        dist.all_reduce(agreed, dist.ReduceOp.AVG)
        mean_loss, news = agreed.tolist()
        quarantined = self.quarantine.tell() if news else []
        if not math.isfinite(mean_loss):
            self.engine.discard()
            self.objective.discard()
            return _Outcome(mean_loss, math.nan, terms, quarantined)
        outcome = _Outcome(mean_loss, self.engine.step(rates).item(), terms, quarantined)
        if outcome.applied:
            self.objective.after_step(self.engine, step)
        else:
            self.objective.discard()
        return outcome

    def _suspects(self, keys: list[str], inputs: Any) -> list[str]:
        """Samples of the global batch whose inputs are not finite; called by all ranks together."""
        finite = self.objective.finite(inputs)
        found: list[list[str]] = [[]] * self.ranks.world_size
        dist.all_gather_object(found, [key for key, good in zip(keys, finite.tolist(), strict=True) if not good])
        return [key for part in found for key in part]

    def _check_skip_budget(self, progress: Progress) -> None:
        budget = self.config.health.skipped_steps_budget
        if progress.skipped_steps > budget:
            raise DataError(
                "health.skipped_steps_budget",
                f"{progress.skipped_steps} steps with a loss or gradient that is not finite; {budget} are allowed",
                "events.jsonl in the run folder names the samples that are not finite: clean the data; "
                "where it names none, lower optimizer.lr.",
            )
