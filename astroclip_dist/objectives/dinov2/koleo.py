"""KoLeo: a batch's features should spread evenly over the sphere (Sablayrolles et al. 2019, section 3.2).

AstroCLIP writes it in equation A7, where the sign got lost.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from astroclip_dist.errors import ConfigError
from astroclip_dist.objectives.dinov2.precision import as_written, at_least_float32

_EPS = 1e-8


def koleo_loss(features: Tensor, cohort: int) -> Tensor:
    """Mean over samples of -log of the distance to the nearest neighbour.

    The nearest neighbour of a sample is looked for in its cohort: samples of one lane, which are always together on one
    rank. DINOv2 takes the rank's batch, and its value and gradients change with the number of ranks; this is the same
    for every world size, and every micro-batch of whole cohorts, and needs no communication.

    Args:
        features: (n, D), any float dtype; they are normalised here.
        cohort: how many consecutive samples make one, a divisor of n.

    Returns:
        0-d, float32 (float64 for such features). The gradient passes through both samples of a pair.

    Raises:
        ConfigError: a cohort of one, in which nobody has a neighbour.
    """
    if cohort < 2:
        raise ConfigError(
            "objective.cohort",
            cohort,
            "KoLeo compares at least 2 samples of a lane: let batch.global_size / batch.lanes be larger, or "
            "objective.koleo_weight 0.",
        )
    points = F.normalize(at_least_float32(features), dim=-1, eps=_EPS).unflatten(0, (-1, cohort))
    with torch.no_grad(), as_written(points):
        similarity = points @ points.transpose(1, 2)
        similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        nearest = similarity.argmax(dim=2)
    neighbours = points.take_along_dim(nearest[:, :, None], dim=1)
    return -(torch.linalg.vector_norm(points - neighbours, dim=2) + _EPS).log().mean()
