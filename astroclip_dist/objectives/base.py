"""What an objective tells the loop: which modules it trains, which members it reads, how a batch becomes gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from astroclip_dist.data.stream import Batch
from astroclip_dist.parallel.engines import Engine


class Objective(Protocol):
    """One kind of training.

    Attributes:
        members: of the samples that it reads, of ``image``, ``spectrum``, ``ivar``.
    """

    members: Sequence[str]

    def build(self) -> nn.Module:
        """The module to train, freshly initialised from torch's generator, the same on all ranks."""

    def prepare(self, batch: Batch) -> tuple[Tensor, ...]:
        """A batch as inputs of the module on this rank's device: transferred, augmented, stretched."""

    def accumulate(self, engine: Engine, inputs: tuple[Tensor, ...], key: int) -> dict[str, Tensor]:
        """Forward and backward of this rank's part of one step, in micro-batches.

        Args:
            key: seeds what is random inside the module (dropout), for this step and rank.

        Returns:
            Terms to log, 0-d; ``loss`` is the one whose mean over ranks is the loss of the global batch.
        """

    def after_step(self, engine: Engine) -> None:
        """What follows an applied step (an EMA teacher, a centre)."""
