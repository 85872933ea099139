"""Learning rate and weight decay of a run, step by step."""

from __future__ import annotations

from astroclip_dist.config.run import Optimizer
from astroclip_dist.config.schedule import Cosine, RunSteps, WarmupCosine
from astroclip_dist.parallel.engines import StepRates


class Rates:
    """Both schedules end with the run, or where ``decay_over`` says."""

    def __init__(self, config: Optimizer, steps: RunSteps) -> None:
        last = steps.of(config.decay_over) or steps.total
        final_decay = config.weight_decay if config.final_weight_decay is None else config.final_weight_decay
        self._lr = WarmupCosine(config.lr, config.final_lr, steps.of(config.warmup), last)
        self._weight_decay = Cosine(config.weight_decay, final_decay, last)

    def __call__(self, step: int, frozen: tuple[str, ...]) -> StepRates:
        """Those of a step, counted from 0, that leaves some parameters as they are."""
        return StepRates(self._lr(step), self._weight_decay(step), frozen)
