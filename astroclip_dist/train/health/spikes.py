"""Losses that stand far out from the recent ones: decided from the agreed losses alone, so by all ranks alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass

# Steps over which the mean runs; before as many were applied, nothing is judged.
HORIZON = 50
# Deviations below the rounding of a mean over ranks in fp32 are none.
_RESOLUTION = 2.0**-20


@dataclass(frozen=True)
class LossHistory:
    """Exponentially weighted mean and variance of the losses of applied steps (West 1979, "Updating mean and variance
    estimates"); plain ones over the first ``HORIZON`` steps. Python floats, which a checkpoint's JSON keeps exactly.

    Attributes:
        steps: how many losses it has seen.
    """

    steps: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def after(self, loss: float) -> LossHistory:
        """With one more applied step, whose loss is finite."""
        weight = 1 / min(self.steps + 1, HORIZON)
        apart = loss - self.mean
        variance = (1 - weight) * (self.variance + weight * apart * apart)
        return LossHistory(self.steps + 1, self.mean + weight * apart, variance)

    def deviations(self, loss: float) -> float:
        """By how many standard deviations a loss lies above the mean; 0 as long as too few losses were seen."""
        if self.steps < HORIZON:
            return 0.0
        deviation = max(self.variance**0.5, _RESOLUTION * abs(self.mean))
        return (loss - self.mean) / deviation if deviation else 0.0

    def about(self) -> dict[str, float]:
        """For a checkpoint's manifest; ``LossHistory(**about)`` is the same again."""
        return asdict(self)
