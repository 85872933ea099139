"""What saves and failures cost a run."""

from __future__ import annotations

from dataclasses import dataclass

from astroclip_dist.config import RunConfig
from astroclip_dist.config.engine import DeepSpeedEngine
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.plan.assumptions import Assumptions
from astroclip_dist.plan.storage import Saves


@dataclass(frozen=True)
class Duration:
    """The hours of a run, and what of them is not training.

    Attributes:
        stall: seconds that training stands still for one save.
        write: seconds until a save is complete.
        between: seconds from save to save.
        training: hours, without saves and failures.
        saving: hours that training stands still for saves.
        failures: how many are to be expected.
        lost: hours that one of them costs the run: half of what lies between two saves, the save that was not complete,
            and the restart.
    """

    stall: float
    write: float
    between: float
    training: float
    saving: float
    failures: float
    lost: float

    @property
    def hours(self) -> float:
        return self.training + self.saving + self.failures * self.lost


def duration_of(
    config: RunConfig, steps: RunSteps, seconds: float, saves: Saves, nodes: int, assumptions: Assumptions
) -> Duration:
    """
    Args:
        seconds: of a step.
    """
    # DeepSpeed's state is gathered whole on every rank; the other engines' ranks copy what they write.
    copied = saves.bytes / (1 if isinstance(config.engine, DeepSpeedEngine) else config.workers)
    copy = copied / assumptions.number("copy_rate")
    write = saves.bytes / nodes / assumptions.number("bandwidth")
    between = saves.every * seconds
    # A save that is not done when the next one is due is waited for.
    stall = copy + (max(0.0, write - between) if config.checkpoint.background else write)
    training, saving = steps.total * seconds / 3600, saves.count * stall / 3600
    failures = (training + saving) * config.workers / assumptions.number("failure_every")
    lost = (between / 2 + copy + write + assumptions.number("restart_time")) / 3600
    return Duration(stall, write, between, training, saving, failures, lost)
