"""The training loop: one step from batch to checkpoint, for every objective, engine and launcher."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from astroclip_dist.config import RunConfig
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.data.ordering.mixture import SampleOrder, order_of
from astroclip_dist.data.reading.quarantine import BadData
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.streaming.stream import Batch, Stream
from astroclip_dist.models.flops import sample_flops
from astroclip_dist.objectives import Objective, build_objective
from astroclip_dist.parallel import phase
from astroclip_dist.parallel.engines import Engine, StepRates, build_engine
from astroclip_dist.parallel.process_group import Ranks, join, leave, set_timeout
from astroclip_dist.store import Store
from astroclip_dist.train.agreement import Agreed, agree
from astroclip_dist.train.checkpoint import Checkpointer, Progress, complete_checkpoints, restore
from astroclip_dist.train.failure import failing_together
from astroclip_dist.train.health.skips import NOT_FINITE, check_budget, suspects, why_skip
from astroclip_dist.train.health.stragglers import Stragglers
from astroclip_dist.train.health.watchdog import Watchdog
from astroclip_dist.train.journal import Journal
from astroclip_dist.train.preemption import Notice
from astroclip_dist.train.pretrained import pretrained_values
from astroclip_dist.train.quarantine import RunQuarantine
from astroclip_dist.train.rates import Rates
from astroclip_dist.train.weights import export_weights


@dataclass(frozen=True)
class Ending:
    """How a training ended: at its full length, or before it because of what asked a rank to leave."""

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
    phase.begin()
    ranks = join(config.device, config.health.startup_timeout)
    try:
        # All have joined before any may fail: the first error is to be the one that is shown, not a failed join.
        dist.barrier()
        with failing_together(ranks), Watchdog(Store(config.run), ranks, config.health):
            ending = _Training(config.at(ranks.world_size), ranks, notice).run()
    except BaseException:
        # Whoever made the group: the other ranks are to notice at once that this one is gone.
        dist.destroy_process_group()
        raise
    leave(ranks)
    return ending


@dataclass(frozen=True)
class _Outcome:
    """One step: its loss over the global batch and what else was agreed, the loss of this rank's part, the gradient's
    norm over all ranks, why the step was not applied (None: it was), terms to log, and the bad samples that the ranks
    told each other of."""

    agreed: Agreed
    rank_loss: Tensor
    gradient_norm: float
    skipped: str | None
    terms: dict[str, Tensor | float]
    quarantined: list[BadData]

    @property
    def loss(self) -> float:
        return self.agreed.loss


class _Training:
    def __init__(self, config: RunConfig, ranks: Ranks, notice: Notice) -> None:
        self.config, self.ranks, self.notice = config, ranks, notice
        self.store = Store(config.run)
        # The launcher has asked the storage before; a restart may come while it is away.
        self.dataset = Dataset.open(config.data_urls, ["train"], config.data_weights, patient=True)
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
            Journal(
                self.config, self.store, self.ranks, self.steps.total, self.flops, self.quarantine.budget
            ) as journal,
            failing_together(self.ranks),
        ):
            journal.started(progress, self.order.steps_per_epoch)
            self.checkpointer.before_newest(journal.keep_records)
            if progress.step < self.steps.total:
                progress, preempted_by = self._steps(progress, journal)
                if preempted_by:
                    journal.preempted(progress, preempted_by)
                    return Ending(progress, preempted_by)
            phase.enter("finish")
            if self.ranks.is_first:
                export_weights(self.store)
            journal.finished(progress)
        return Ending(progress, None)

    def _reason_to_leave(self) -> str | None:
        """Why some rank was asked to leave, if one was; called by all ranks together."""
        reasons: list[str | None] = [None] * self.ranks.world_size
        dist.all_gather_object(reasons, self.notice.reason)
        return next((reason for reason in reasons if reason), None)

    def _steps(self, progress: Progress, journal: Journal) -> tuple[Progress, str | None]:
        """Train to the end, or until a rank is asked to leave before it, by what; in either case the last step is
        saved."""
        preempted_by = self._reason_to_leave()
        phase.enter("data", progress.step)
        stragglers = Stragglers(self.ranks)
        settled = False
        deadline = None
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
            while progress.step < self.steps.total and not preempted_by:
                phase.enter("data", progress.step)
                began = time.perf_counter()
                batch = next(stream)
                waited = time.perf_counter() - began
                phase.enter("prepare")
                rates = self.rates(progress.step, self.objective.frozen(progress.step))
                inputs = self.objective.prepare(batch)
                outcome = self._step(inputs, progress, rates)
                phase.enter("log")
                if not settled:
                    set_timeout(self.config.health.collective_timeout)
                    phase.settle()
                    settled = True
                progress = self._account(progress, batch, inputs, outcome, journal)
                logged = progress.step % self.config.tracking.log_every == 0 or progress.step == self.steps.total
                journal.step(
                    progress,
                    {
                        "loss": outcome.loss,
                        "gradient_norm": outcome.gradient_norm,
                        "lr": rates.lr,
                        "weight_decay": rates.weight_decay,
                        "quarantined_samples": self.quarantine.samples,
                        **outcome.terms,
                        **(stragglers.figures() if logged else {}),
                    },
                    waited_s=waited,
                    took_s=time.perf_counter() - began,
                )
                phase.enter("save")
                agreed = outcome.agreed
                if agreed.preempted and progress.step < self.steps.total:
                    preempted_by = self._reason_to_leave()
                    deadline = time.monotonic() + self.config.health.preemption_deadline
                if saved := self.checkpointer.advance(agreed.saving):
                    journal.saved(saved)
                self.checkpointer.observe(outcome.loss)
                due = preempted_by or self.checkpointer.due(progress, agreed.save_due)
                if due and (saved := self.checkpointer.begin(progress, deadline)):
                    journal.saved(saved)
        phase.enter("save")
        if saved := self.checkpointer.finish(deadline):
            journal.saved(saved)
        return progress, preempted_by

    def _step(self, inputs: Any, progress: Progress, rates: StepRates) -> _Outcome:
        """Forward, backward, agree, apply. All ranks decide alike, by the loss and norm of all of them."""
        terms = self.objective.accumulate(self.engine, inputs, progress.step)
        phase.enter("agree")
        loss = torch.as_tensor(terms.pop("loss"))
        agreed = agree(
            loss,
            news=bool(self.quarantine.news),
            preempted=self.notice.reason is not None,
            save_due=self.checkpointer.is_time,
            saving=self.checkpointer.saving,
        )
        quarantined = self.quarantine.tell() if agreed.news else []
        norm, skipped = math.nan, why_skip(agreed.loss, progress.losses, self.config.health)
        if skipped is None:
            phase.enter("step")
            norm = self.engine.step(rates).item()
            skipped = None if math.isfinite(norm) else NOT_FINITE
        else:
            self.engine.discard()
        if skipped is None:
            self.objective.after_step(self.engine, progress.step)
        else:
            self.objective.discard()
        return _Outcome(agreed, loss, norm, skipped, terms, quarantined)

    def _account(self, progress: Progress, batch: Batch, inputs: Any, outcome: _Outcome, journal: Journal) -> Progress:
        """How far the run is after a step; what went wrong in it is written down, and stops the run where it is more
        than the budget."""
        progress = replace(progress, step=progress.step + 1, cursor=self.order.next(progress.cursor))
        if outcome.skipped is None:
            progress = replace(progress, losses=progress.losses.after(outcome.loss))
        else:
            progress = replace(progress, skipped_steps=progress.skipped_steps + 1)
            keys, losses = suspects(self.ranks, batch.keys, self.objective.finite(inputs), outcome.rank_loss)
            journal.skipped(
                progress,
                batch.cursor,
                outcome.loss,
                outcome.gradient_norm,
                kind=outcome.skipped,
                not_finite=keys,
                rank_losses=losses,
            )
            check_budget(progress.skipped_steps, self.config.health)
        if outcome.quarantined:
            journal.quarantined(progress, outcome.quarantined)
        return progress
