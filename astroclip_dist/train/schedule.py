"""Learning rate as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
