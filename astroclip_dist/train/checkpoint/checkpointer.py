"""When a run saves, and the saves that are under way."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from astroclip_dist.config.run import Checkpoint
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.parallel.engines import Engine
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint.errors_of_ranks import LateError
from astroclip_dist.train.checkpoint.folder import checkpoint_name
from astroclip_dist.train.checkpoint.progress import Progress
from astroclip_dist.train.checkpoint.retention import Retention
from astroclip_dist.train.checkpoint.saving import Save, Saver

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is complete.

    Attributes:
        unpruned: on the first rank, why checkpoints that are not to be kept are still there.
    """

    name: str
    progress: Progress
    unpruned: str | None = None


def save(
    run: Store, engine: Engine, progress: Progress, keep_last: int, beside: Mapping[str, Tensor] | None = None
) -> str:
    """Save the whole state and wait until it is complete; called by all ranks together.

    Args:
        beside: what the objective keeps outside of the engine's module, the same on all ranks.

    Returns:
        The checkpoint's name in the run folder.

    Raises:
        StorageError: on all ranks, when one of them cannot write; ``latest`` has not moved.
    """
    saver, name = Saver(run, engine, beside or {}, Retention(keep_last)), checkpoint_name(progress.step)
    saver.begin(name, _about(progress, engine, None, None))
    while saver.under_way:
        saver.proceed(None)
    return name


class Checkpointer:
    """Saves a run's state; every method but ``is_time``, ``saving`` and ``observe`` is called by all ranks together.

    What goes wrong on any rank in the background is raised on all ranks by the next ``advance``, ``begin`` or
    ``finish`` that looks after the save.
    """

    def __init__(
        self, run: Store, engine: Engine, beside: Mapping[str, Tensor], config: Checkpoint, steps: RunSteps
    ) -> None:
        self._engine, self._config, self._steps = engine, config, steps
        self._every = steps.of(config.every)
        self._saver = Saver(run, engine, beside, Retention.of(config, steps))
        self._progress = Progress()
        self._began = time.monotonic()
        self._losses: list[float] = []

    def before_newest(self, call: Callable[[], None]) -> None:
        """Have something called on the first rank, in the background, before each checkpoint becomes the newest."""
        self._saver.before_newest = call

    @property
    def is_time(self) -> bool:
        """Whether this rank's clock says that a save is due."""
        interval = self._config.interval
        return interval is not None and time.monotonic() - self._began >= interval

    @property
    def saving(self) -> bool:
        """Whether this rank still writes."""
        return self._saver.writing

    def observe(self, loss: float) -> None:
        """Take a step's loss into the score of the next save; one that is not finite is left out."""
        if math.isfinite(loss):
            self._losses.append(loss)

    def due(self, progress: Progress, is_time: bool) -> bool:
        """Whether to save after this step; ``is_time`` of any rank."""
        return is_time or progress.step % self._every == 0 or progress.step == self._steps.total

    def begin(self, progress: Progress, deadline: float | None = None) -> Saved | None:
        """Take the state as it is now, and start to write it; a save that is under way is waited for.

        Args:
            deadline: of ``time.monotonic()``, for whatever is waited for; when it passes before this save is begun,
                none is. None: without limit.

        Returns:
            The checkpoint that became complete meanwhile: the one before or, unless in the background, this one.
        """
        before = None
        if self._saver.under_way:
            began = time.perf_counter()
            before = self._wait(deadline)
            if before is None:
                return None
            self._say("waited %.1f s for %s: saves take longer than what lies between them", began, before.name)
        began = time.perf_counter()
        self._began = time.monotonic()
        score = math.fsum(self._losses) / len(self._losses) if self._losses else None
        self._losses.clear()
        self._progress, name = progress, checkpoint_name(progress.step)
        self._saver.begin(name, _about(progress, self._engine, score, self._steps.per_epoch))
        if not self._config.background:
            before = self._wait(deadline)
        self._say("training stood still for %.2f s to save %s", began, name)
        return before

    def advance(self, saving: bool) -> Saved | None:
        """Go on with a save once no rank writes any more.

        Args:
            saving: of any rank.

        Returns:
            The checkpoint that became complete.
        """
        if saving or not self._saver.under_way:
            return None
        return self._saved(self._saver.proceed(None))

    def finish(self, deadline: float | None) -> Saved | None:
        """Wait until the save under way, if any, is complete.

        Args:
            deadline: of ``time.monotonic()``, at which it is given up; None: without limit.

        Returns:
            The checkpoint that became complete; None, too, when it was given up: then the one before is the newest.
        """
        return self._wait(deadline) if self._saver.under_way else None

    def _wait(self, deadline: float | None) -> Saved | None:
        name = self._saver.under_way
        complete = None
        try:
            while self._saver.under_way:
                complete = self._saver.proceed(deadline)
        except LateError:
            if self._engine.ranks.is_first:
                log.error("%s: health.preemption_deadline is over, it is given up: the one before counts", name)
        return self._saved(complete)

    def _saved(self, complete: Save | None) -> Saved | None:
        return None if complete is None else Saved(complete.name, self._progress, complete.unpruned)

    def _say(self, message: str, began: float, name: str) -> None:
        if self._engine.ranks.is_first:
            log.info(message, time.perf_counter() - began, name)


def _about(progress: Progress, engine: Engine, score: float | None, steps_per_epoch: int | None) -> dict[str, Any]:
    return {
        **progress.about(),
        "score": score,
        "saved_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "world_size": engine.ranks.world_size,
        "steps_per_epoch": steps_per_epoch,
    }
