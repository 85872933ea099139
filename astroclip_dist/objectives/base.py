"""What an objective tells the loop: which modules it trains, which members it reads, how a batch becomes gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from astroclip_dist.config import RunConfig
from astroclip_dist.config.model import SpectrumEncoder
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.data.streaming.stream import Batch
from astroclip_dist.errors import ConfigError, DataError
from astroclip_dist.parallel.engines import Engine


@dataclass(frozen=True)
class Setting:
    """What an objective is built for.

    Attributes:
        image, spectrum: how the dataset's images and spectra look; None: it has none.
        has_ivar: whether the spectra come with inverse variances.
        steps: the run's length.
        device: of this rank.
    """

    config: RunConfig
    image: ImageLayout | None
    spectrum: SpectrumLayout | None
    has_ivar: bool
    steps: RunSteps
    device: torch.device

    def image_layout(self, crop: int) -> ImageLayout:
        """The images' layout.

        Raises:
            DataError: there are none. ConfigError: they are smaller than a crop.
        """
        if self.image is None:
            raise self._absent("image")
        if crop > self.image.size:
            raise ConfigError(
                "objective.image.crop", crop, f"The dataset's images have {self.image.size} pixels a side."
            )
        return self.image

    def spectrum_layout(self, config: SpectrumEncoder, *, ivar: bool = False) -> SpectrumLayout:
        """The spectra's layout.

        Args:
            ivar: whether inverse variances are needed even if the encoder does not ask for them.

        Raises:
            DataError: there are no spectra, or not the inverse variances. ConfigError: they are shorter than a slice.
        """
        if self.spectrum is None:
            raise self._absent("spectrum")
        if (ivar or config.ivar_aware) and not self.has_ivar:
            raise self._absent("ivar")
        if config.slice_size > self.spectrum.size:
            raise ConfigError(
                "objective.spectrum.slice_size", config.slice_size, f"Spectra have {self.spectrum.size} bins."
            )
        return self.spectrum

    def _absent(self, member: str) -> DataError:
        where = ", ".join(self.config.data_urls)
        return DataError(f"{where}: {member}", "absent", f"Choose a dataset whose samples have {member}.")


class Objective(ABC):
    """One kind of training.

    Attributes:
        members: of the samples that it reads, of ``image``, ``spectrum``, ``ivar``.
    """

    members: Sequence[str]

    @abstractmethod
    def build(self) -> nn.Module:
        """The module to train, on the meta device: shapes and names, and rules for first values."""

    @abstractmethod
    def prepare(self, batch: Batch) -> Any:
        """A batch as inputs of the module on this rank's device: transferred, augmented, stretched, masked."""

    @abstractmethod
    def finite(self, inputs: Any) -> Tensor:
        """(n,) bool, on the device: which samples' inputs are finite."""

    @abstractmethod
    def accumulate(self, engine: Engine, inputs: Any, step: int) -> dict[str, Tensor | float]:
        """Forward and backward of this rank's part of one step, in micro-batches.

        Returns:
            Terms to log, 0-d; ``loss`` is the one whose mean over ranks is the loss of the global batch.
        """

    def frozen(self, step: int) -> tuple[str, ...]:
        """Last parts of the names of parameters that a step leaves as they are."""
        return ()

    def after_step(self, engine: Engine, step: int) -> None:  # noqa: B027 (most have nothing to do)
        """What follows an applied step (an EMA teacher, a centre)."""

    def discard(self) -> None:  # noqa: B027
        """Forget what :meth:`accumulate` kept for :meth:`after_step`: the step was not applied."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside the engine's state, replicated on all ranks; restored into these tensors."""
        return {}
