"""Objectives by name: what a step minimises."""

from __future__ import annotations

import torch

from astroclip_dist.config import RunConfig
from astroclip_dist.data.dataset import Dataset
from astroclip_dist.objectives.base import Objective
from astroclip_dist.objectives.clip import Clip


def build_objective(config: RunConfig, dataset: Dataset, device: torch.device) -> Objective:
    """The objective of a run's configuration."""
    return Clip(config.objective, dataset, seed=config.seed, micro_batch=config.micro_batch, device=device)


__all__ = ["Objective", "build_objective"]
