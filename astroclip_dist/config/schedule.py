"""Values that change with the optimizer step: learning rate, weight decay, teacher momentum and temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass

from astroclip_dist.config.units import TrainingLength


@dataclass(frozen=True)
class RunSteps:
    """The length of a run, and how lengths given in other units compare with it."""

    total: int
    per_epoch: int
    global_batch: int

    def of(self, length: TrainingLength | None) -> int:
        """A length in steps; none is 0."""
        return length.steps(self.global_batch, self.per_epoch) if length is not None and length.amount else 0


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from ``first`` to ``final`` over ``steps``, then constant."""

    first: float
    final: float
    steps: int

    def __call__(self, step: int) -> float:
        """The value at optimizer step ``step``, counted from 0."""
        done = min(1.0, step / self.steps) if self.steps else 1.0
        return self.final + (self.first - self.final) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Ramp:
    """A line from ``first`` to ``final`` over ``steps``, then constant."""

    first: float
    final: float
    steps: int

    def __call__(self, step: int) -> float:
        """The value at optimizer step ``step``, counted from 0."""
        return self.first + (self.final - self.first) * (min(1.0, step / self.steps) if self.steps else 1.0)


@dataclass(frozen=True)
class WarmupCosine:
    """Linear from 0 to ``peak`` over the warm-up, then half a cosine to ``final`` at the end of training."""

    peak: float
    final: float
    warmup_steps: int
    total_steps: int

    def __call__(self, step: int) -> float:
        """The rate of optimizer step ``step``, counted from 0; the first step of a warm-up is already above 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        return Cosine(self.peak, self.final, self.total_steps - self.warmup_steps)(step - self.warmup_steps)
