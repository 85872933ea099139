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
from astroclip_dist.errors import DataError
from astroclip_dist.models.flops import sample_flops
from astroclip_dist.objectives import Objective, build_objective
from astroclip_dist.parallel.engines import Engine, StepRates, build_engine
from astroclip_dist.parallel.process_group import Ranks, join, leave
from astroclip_dist.store import Store
from astroclip_dist.train.agreement import Agreed, agree
from astroclip_dist.train.checkpoint import Checkpointer, Progress, complete_checkpoints, restore
from astroclip_dist.train.failure import failing_together
from astroclip_dist.train.journal import Journal
from astroclip_dist.train.preemption import Notice
from astroclip_dist.train.pretrained import pretrained_values
from astroclip_dist.train.quarantine import RunQuarantine
from astroclip_dist.train.rates import Rates
from astroclip_dist.train.weights import export_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ending:
    """How a training ended: at its full length, or saved because of what asked it to leave."""

    progress: Progress
    preempted_by: str | None


def train(config: RunConfig, notice: Notice) -> Ending:
    """Run, or go on with, a training on this rank until its length is reached or the process is asked to leave.

    All ranks call this together, started by a launcher with the variables that ``process_group.join`` reads. The run
    must be registered in its run folder.

    Raises:
        UserError: configuration, data or storage, on the rank that saw it first.
        OtherRankError: on the other ranks.
    """
    ranks = join(config.device, config.health.startup_timeout)
    try:
        # All have joined before any may fail: the first error is to be the one that is shown, not a failed join.
        dist.barrier()
        with failing_together(ranks):
            ending = _Training(config.at(ranks.world_size), ranks, notice).run()
    except BaseException:
        # Whoever made the group: the other ranks are to notice at once that this one is gone.
        dist.destroy_process_group()
        raise
    leave(ranks)
    return ending


@dataclass(frozen=True)
class _Outcome:
    """One step: its loss over the global batch, the gradient's norm over all ranks, other terms to log, and the bad
    samples that the ranks told each other of."""

    agreed: Agreed
    gradient_norm: float
    terms: dict[str, Tensor | float]
    quarantined: list[BadData]

    @property
    def loss(self) -> float:
        return self.agreed.loss

    @property
    def applied(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class _Training:
    def __init__(self, config: RunConfig, ranks: Ranks, notice: Notice) -> None:
        self.config, self.ranks, self.notice = config, ranks, notice
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
        self.rates = Rates(config.optimizer, self.steps)
        self.objective: Objective = build_objective(config, self.dataset, self.steps, ranks.device)
        pretrained = None if complete_checkpoints(self.store) else pretrained_values(config)
        self.engine: Engine = build_engine(config, ranks, self.objective.build(), pretrained)
        self.engine.train()
        self.checkpointer = Checkpointer(self.store, self.engine, self.objective.state(), config.checkpoint, self.steps)
        image, spectrum = self.dataset.image, self.dataset.spectrum
        self.flops = sample_flops(
            config.objective,
            bands=len(image.bands) if image else 0,
            bins=spectrum.size if spectrum else 0,
            global_batch=batch.global_size,
        ).executed

    def run(self) -> Ending:
        progress = restore(self.store, self.engine, self.objective.state()) or Progress()
        # Failing together within the journal, too: it is to write down the first rank's error.
        with (
            Journal(self.config, self.store, self.ranks, self.steps.total, self.flops) as journal,
            failing_together(self.ranks),
        ):
            journal.started(progress, self.order.steps_per_epoch)
            preempted = False
            if progress.step < self.steps.total:
                progress, preempted = self._steps(progress, journal)
            if preempted:
                reasons: list[str | None] = [None] * self.ranks.world_size
                dist.all_gather_object(reasons, self.notice.reason)
                reason = next(reason for reason in reasons if reason)
                journal.preempted(progress, reason)
                return Ending(progress, reason)
            if self.ranks.is_first:
                export_weights(self.store)
            journal.finished(progress)
        return Ending(progress, None)

    def _steps(self, progress: Progress, journal: Journal) -> tuple[Progress, bool]:
        """Train to the end, or until a rank is asked to leave; in either case the last step is saved."""
        agreed = None
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
            while progress.step < self.steps.total and not (agreed and agreed.preempted):
                began = time.perf_counter()
                batch = next(stream)
                waited = time.perf_counter() - began
                rates = self.rates(progress.step, self.objective.frozen(progress.step))
                inputs = self.objective.prepare(batch)
                outcome = self._step(inputs, progress.step, rates)
                progress = replace(progress, step=progress.step + 1, cursor=self.order.next(progress.cursor))
                if not outcome.applied:
                    progress = replace(progress, skipped_steps=progress.skipped_steps + 1)
                    journal.skipped(
                        progress,
                        batch.cursor,
                        outcome.loss,
                        outcome.gradient_norm,
                        kind="not finite",
                        not_finite=self._suspects(batch.keys, inputs),
                        rank_losses=[],
                    )
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
                agreed = outcome.agreed
                if saved := self.checkpointer.advance(agreed.saving):
                    journal.saved(saved)
                self.checkpointer.observe(outcome.loss)
                if self.checkpointer.due(progress, agreed.save_due) or agreed.preempted:
                    deadline = self.config.health.preemption_deadline if agreed.preempted else None
                    if saved := self.checkpointer.begin(progress, deadline):
                        journal.saved(saved)
        preempted = agreed is not None and agreed.preempted
        if saved := self.checkpointer.finish(self.config.health.preemption_deadline if preempted else None):
            journal.saved(saved)
        return progress, preempted

    def _step(self, inputs: Any, step: int, rates: StepRates) -> _Outcome:
        """Forward, backward, agree, apply. Loss and norm are those of all ranks, so all ranks decide alike."""
        terms = self.objective.accumulate(self.engine, inputs, step)
        agreed = agree(
            torch.as_tensor(terms.pop("loss")),
            news=bool(self.quarantine.news),
            preempted=self.notice.reason is not None,
            save_due=self.checkpointer.is_time,
            saving=self.checkpointer.saving,
        )
        quarantined = self.quarantine.tell() if agreed.news else []
        if not math.isfinite(agreed.loss):
            self.engine.discard()
            self.objective.discard()
            return _Outcome(agreed, math.nan, terms, quarantined)
        outcome = _Outcome(agreed, self.engine.step(rates).item(), terms, quarantined)
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
