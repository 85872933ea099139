"""Objectives by name: what a step minimises."""

from __future__ import annotations

import torch

from astroclip_dist.config import RunConfig
from astroclip_dist.config.objective import ImageDino, MaskedSpectrum
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.objectives.base import Objective, Setting

_MEMBERS = ("image", "spectrum", "ivar")


def build_objective(config: RunConfig, dataset: Dataset, steps: RunSteps, device: torch.device) -> Objective:
    """The objective of a run's configuration, for the layouts of its dataset.

    Raises:
        ConfigError: sizes that the dataset's images or spectra cannot fill.
        DataError: the dataset lacks what the objective reads.
    """
    image, spectrum, ivar = (all(getattr(m, member) for m in dataset.manifests) for member in _MEMBERS)
    setting = Setting(
        config, dataset.image if image else None, dataset.spectrum if spectrum else None, ivar, steps, device
    )
    return objective_of(setting)


def objective_of(setting: Setting) -> Objective:
    """As ``build_objective``, where only the layouts are known."""
    if isinstance(setting.config.objective, ImageDino):
        from astroclip_dist.objectives.dinov2.objective import DinoObjective

        return DinoObjective(setting, setting.config.objective)
    if isinstance(setting.config.objective, MaskedSpectrum):
        from astroclip_dist.objectives.masked_spectrum import MaskedSpectrumObjective

        return MaskedSpectrumObjective(setting, setting.config.objective)
    from astroclip_dist.objectives.clip import ClipObjective

    return ClipObjective(setting, setting.config.objective)


__all__ = ["Objective", "Setting", "build_objective", "objective_of"]
