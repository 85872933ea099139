"""When a run saves, and the saves that are under way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from astroclip_dist.config.run import Checkpoint
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.parallel.engines import Engine
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import Progress, save


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is complete."""

    name: str
    progress: Progress


class Checkpointer:
    """Saves a run's state; every method but the properties is called by all ranks together."""

    def __init__(
        self, run: Store, engine: Engine, beside: Mapping[str, Tensor], config: Checkpoint, steps: RunSteps
    ) -> None:
        self._run, self._engine, self._beside, self._config, self._steps = run, engine, beside, config, steps
        self._every = steps.of(config.every)
        self._saved: Saved | None = None

    @property
    def is_time(self) -> bool:
        """Whether this rank's clock says that a save is due."""
        return False

    @property
    def saving(self) -> bool:
        """Whether this rank still writes."""
        return False

    def due(self, progress: Progress, is_time: bool) -> bool:
        """Whether to save after this step; ``is_time`` of any rank."""
        return is_time or progress.step % self._every == 0 or progress.step == self._steps.total

    def begin(self, progress: Progress, loss: float) -> None:
        """Take the state as it is now, and start to write it; a save that is under way is waited for."""
        self._saved = Saved(save(self._run, self._engine, progress, self._config.keep_last, self._beside), progress)

    def advance(self, saving: bool) -> Saved | None:
        """Go on with a save once no rank writes any more.

        Args:
            saving: of any rank.

        Returns:
            The checkpoint that became complete.
        """
        saved, self._saved = self._saved, None
        return saved

    def finish(self, deadline_s: float | None) -> Saved | None:
        """Wait until the save under way, if any, is complete."""
        return self.advance(saving=False)
