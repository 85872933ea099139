"""What the student is to predict: the teacher's answers, balanced over those of all ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from astroclip_dist.models.initial import InitialValues, initialise
from astroclip_dist.objectives.dinov2.centring import Centring
from astroclip_dist.objectives.dinov2.module import Answers
from astroclip_dist.objectives.dinov2.sinkhorn import sinkhorn_knopp


class Targets(Protocol):
    """A way to make targets; class tokens and patches are balanced apart, also where they share a head."""

    def of(self, answers: Iterable[Answers], temperature: float) -> Iterator[Answers]:
        """The targets of each micro-batch of a step, from the teacher's logits for it. All ranks call it together."""

    def update(self) -> None:
        """What follows an applied step."""

    def discard(self) -> None:
        """The step was not applied."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, the same on all ranks."""


class CentredTargets:
    """By the centres of the steps before: the targets of one micro-batch do not wait for the teacher's next."""

    def __init__(self, prototypes: int, device: torch.device) -> None:
        self._classes, self._patches = Centring(prototypes), Centring(prototypes)
        for centring in (self._classes, self._patches):
            initialise(centring, InitialValues(centring, seed=0), device)

    def of(self, answers: Iterable[Answers], temperature: float) -> Iterator[Answers]:
        for classes, patches in answers:
            yield Answers(self._classes.targets(classes, temperature), self._patches.targets(patches, temperature))

    def update(self) -> None:
        self._classes.update()
        self._patches.update()

    def discard(self) -> None:
        self._classes.discard()
        self._patches.discard()

    def state(self) -> dict[str, Tensor]:
        return {"class_centre": self._classes.centre, "patch_centre": self._patches.centre}


class SinkhornTargets:
    """By the whole global batch's answers: the teacher answers for all micro-batches before the student does."""

    def of(self, answers: Iterable[Answers], temperature: float) -> Iterator[Answers]:
        classes, patches = zip(*answers, strict=True)
        balanced = (_balanced(logits, temperature) for logits in (classes, patches))
        return map(Answers, *balanced)

    def update(self) -> None:
        """Nothing is kept from step to step."""

    def discard(self) -> None:
        """Nothing is kept from step to step."""

    def state(self) -> dict[str, Tensor]:
        return {}


def _balanced(logits: tuple[Tensor, ...], temperature: float) -> tuple[Tensor, ...]:
    return sinkhorn_knopp(torch.cat(logits), temperature).split([len(part) for part in logits])
