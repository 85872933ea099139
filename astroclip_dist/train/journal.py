"""What the first rank writes down while a run goes on: progress lines, metrics, events."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from astroclip_dist.config import RunConfig
from astroclip_dist.data.ordering.order import Cursor
from astroclip_dist.data.reading.quarantine import BadData
from astroclip_dist.errors import UserError
from astroclip_dist.parallel import phase
from astroclip_dist.parallel.process_group import Ranks
from astroclip_dist.store import Store, normalize_url
from astroclip_dist.train.checkpoint import Progress, Saved
from astroclip_dist.train.event_log import EventLog
from astroclip_dist.train.failure import OtherRankError
from astroclip_dist.train.monitor import Monitor
from astroclip_dist.train.run_folder import RUN_FILE
from astroclip_dist.train.throughput import device_peak, peak_memory
from astroclip_dist.train.tracking import Tracker

# To write down how it ended, where somebody waits for the process to leave: a launcher whose worker failed, or a
# queue that wants its place. What MLflow does not get in this time waits in the run folder.
_HURRIED_EVENTS_S, _HURRIED_TRACKING_S, _HURRIED_PROGRESS_S = 2.0, 4.0, 2.0
_LAST_PROGRESS_S = 10.0
log = logging.getLogger(__name__)


class Journal:
    """Progress, metrics and events of one process of a run; on all ranks but the first it does nothing."""

    def __init__(
        self,
        config: RunConfig,
        store: Store,
        ranks: Ranks,
        total_steps: int,
        flops: float,
        quarantine_budget: int = 0,
    ) -> None:
        """
        Args:
            flops: of a sample's forward and backward, as executed (``models.flops``).
            quarantine_budget: samples that may be put aside over the whole run.
        """
        self._quarantine_budget = quarantine_budget
        self._config, self._store, self._ranks, self._total_steps = config, store, ranks, total_steps
        self._flops, self._peak = flops, device_peak(ranks.device, config.engine.precision)
        self._began = time.perf_counter()
        self._first_step = self._saved_step = 0
        self._waited_s = self._took_s = 0.0
        self._steps = 0
        self._unpruned = 0
        self._status = "FINISHED"

    def __enter__(self) -> Self:
        if self._ranks.is_first:
            self._events = EventLog(self._store)
            name = normalize_url(self._config.run).rsplit("/", 1)[-1]
            self._tracker = Tracker.open(
                self._store, self._config.tracking_uri(), self._config.tracking.experiment, name
            )
            self._monitor = Monitor(
                self._config, self._store, self._ranks.world_size, self._total_steps, self._quarantine_budget
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._ranks.is_first:
            return
        if error is not None:
            self._status = "FAILED"
            self._events.write("failed", error=str(error)[:1000], phase=phase.current().name)
        # An error that only the user can mend was shown to him; after any other a restart is due.
        mine_to_mend = isinstance(error, UserError) or (isinstance(error, OtherRankError) and error.cause is not None)
        self._monitor.close(
            over=error is None or mine_to_mend,
            deadline_s=_LAST_PROGRESS_S if self._status == "FINISHED" else _HURRIED_PROGRESS_S,
        )
        if self._status == "FINISHED":
            self._events.close()
            self._tracker.close(self._status)
        else:
            self._events.close(_HURRIED_EVENTS_S)
            self._tracker.close(self._status, _HURRIED_TRACKING_S)

    def started(self, progress: Progress, steps_per_epoch: int) -> None:
        """A first start, or one that goes on from a checkpoint."""
        self._first_step = self._saved_step = progress.step
        if self._ranks.is_first:
            event = "started" if progress.step == 0 else "resumed"
            self._events.write(event, step=progress.step, steps=self._total_steps, world_size=self._ranks.world_size)
            self._tracker.log_params(self._config.model_dump(mode="json"))
            self._tracker.log_artifact(RUN_FILE, self._store.read(RUN_FILE))
            self._tracker.set_tags({"run_folder": self._store.url})
            self._monitor.started(progress, steps_per_epoch)
            if self._monitor.failure:
                self._events.write("unwatched", error=self._monitor.failure)
            log.info(
                "%s at step %d of %d (%d an epoch), %d ranks",
                event,
                progress.step,
                self._total_steps,
                steps_per_epoch,
                self._ranks.world_size,
            )

    def step(self, progress: Progress, terms: Mapping[str, float | Tensor], waited_s: float, took_s: float) -> None:
        """One step: its terms, how long the loop waited for data, how long it took in all (seconds)."""
        self._waited_s += waited_s
        self._took_s += took_s
        self._steps += 1
        if self._ranks.is_first:
            self._monitor.step(progress, terms, waited_s, took_s)
        every = self._config.tracking.log_every
        if not self._ranks.is_first or (progress.step % every and progress.step != self._total_steps):
            return
        values = _as_floats(terms)
        values["samples_per_second"] = self._steps * self._config.batch.global_size / self._took_s
        values["data_wait_share"] = self._waited_s / self._took_s
        values["memory_gb"] = peak_memory(self._ranks.device) / 1e9
        # Of one device: see docs/memory-and-throughput.md.
        values["flops_per_second"] = values["samples_per_second"] * self._flops / self._ranks.world_size
        if self._peak is not None:
            values["mfu"] = values["flops_per_second"] / self._peak
        values["epoch"] = progress.cursor.epoch
        values["skipped_steps"] = progress.skipped_steps
        self._monitor.logged(values)
        self._tracker.log_metrics(progress.step, {k: v for k, v in values.items() if math.isfinite(v)})
        rate = (progress.step - self._first_step) / (time.perf_counter() - self._began)
        log.info(
            "step %d/%d  loss %.4f  |grad| %.3g  lr %.2e  %.0f samples/s%s  data wait %.0f %%  ETA %s",
            progress.step,
            self._total_steps,
            values["loss"],
            values["gradient_norm"],
            values["lr"],
            values["samples_per_second"],
            f"  MFU {values['mfu']:.0%}" if "mfu" in values else "",
            100 * values["data_wait_share"],
            _clock((self._total_steps - progress.step) / rate),
        )
        self._waited_s = self._took_s = 0.0
        self._steps = 0

    def skipped(
        self,
        progress: Progress,
        batch: Cursor,
        loss: float,
        gradient_norm: float,
        *,
        kind: str,
        not_finite: Sequence[str],
        rank_losses: Sequence[float],
    ) -> None:
        """A step that was not applied.

        Args:
            kind: why, "not finite" or "spike".
            not_finite: samples of the batch whose inputs are not finite: none when the data are good and the training
                itself diverged.
            rank_losses: of each rank's part of the batch.
        """
        if self._ranks.is_first:
            self._monitor.skipped(kind)
            log.warning(
                "step %d skipped (%s): loss %s, gradient norm %s; samples that are not finite: %s",
                progress.step,
                kind,
                loss,
                gradient_norm,
                ", ".join(not_finite[:3]) or "none",
            )
            self._events.write(
                "skipped",
                step=progress.step,
                kind=kind,
                epoch=batch.epoch,
                batch=batch.step,
                loss=str(loss),
                gradient_norm=str(gradient_norm),
                rank_losses=[str(loss) for loss in rank_losses],
                keys=list(not_finite[:64]),
            )

    def quarantined(self, progress: Progress, bad: Sequence[BadData]) -> None:
        """Samples and shards that were put aside since the last step; ``quarantine.jsonl`` has all of them."""
        if self._ranks.is_first:
            self._events.write(
                "quarantined",
                step=progress.step,
                samples=sum(item.samples for item in bad),
                what=[item.why for item in bad[:16]],
            )

    def keep_records(self) -> None:
        """Let the metrics up to now outlive this process. To be called, by any thread but the training loop's, before a
        checkpoint of these steps becomes the newest: a run that goes on from there does not compute them again."""
        if self._ranks.is_first:
            self._tracker.keep()

    def saved(self, saved: Saved) -> None:
        """A complete checkpoint; that old ones are still there is told as often as it happens."""
        if self._ranks.is_first:
            self._saved_step = saved.progress.step
            self._monitor.saved(saved.progress)
            self._events.write("saved", step=saved.progress.step, checkpoint=saved.name)
            self._unpruned = self._unpruned + 1 if saved.unpruned else 0
            if saved.unpruned:
                self._events.write("unpruned", step=saved.progress.step, error=saved.unpruned, in_a_row=self._unpruned)

    def preempted(self, progress: Progress, reason: str) -> None:
        """The run leaves, to be taken up again."""
        if self._ranks.is_first:
            self._events.write("preempted", step=progress.step, reason=reason, saved=self._saved_step)
            self._status = "SCHEDULED"
            log.info("asked to leave (%s): saved at step %d", reason, self._saved_step)

    def finished(self, progress: Progress) -> None:
        """The end of training."""
        if self._ranks.is_first:
            self._events.write("finished", step=progress.step)


def _as_floats(terms: Mapping[str, float | Tensor]) -> dict[str, float]:
    """Tensors come from the device in one transfer, however many there are."""
    tensors = {name: value for name, value in terms.items() if isinstance(value, Tensor)}
    fetched: list[float] = []
    if tensors:
        fetched = torch.stack([value.detach().reshape(()).float() for value in tensors.values()]).tolist()
    values = dict(zip(tensors, fetched, strict=True))
    return {name: values[name] if name in values else float(value) for name, value in terms.items()}


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
