"""Projection head of self-distillation: features to logits over prototypes (Caron et al. 2021, section 3.1)."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from astroclip_dist.config.model import PrototypeHead as PrototypeHeadConfig
from astroclip_dist.models.initial import Rule, truncated_normal


class PrototypeHead(nn.Module):
    """MLP to a bottleneck, its unit vector, and the cosine with each of K unit prototypes."""

    linear_std = 0.02

    def __init__(self, config: PrototypeHeadConfig, width: int) -> None:
        """
        Args:
            width: of the features.
        """
        super().__init__()
        widths = [width, *[config.hidden] * (config.layers - 1), config.bottleneck]
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            layers += [nn.GELU()] * (number > 0) + [nn.Linear(inputs, outputs)]
        self.mlp = nn.Sequential(*layers)
        self.prototypes = nn.Parameter(torch.empty(config.prototypes, config.bottleneck))

    def initial_values(self) -> dict[str, Rule]:
        # Only directions count for the output, but lengths set how fast they turn: the length is that of torch's
        # linear layers, which DINO's prototypes start from.
        bottleneck = self.prototypes.shape[1]
        return {"prototypes": truncated_normal(1 / math.sqrt(3 * bottleneck))}

    def forward(self, features: Tensor) -> Tensor:
        """(n, width) to (n, K) logits in [-1, 1]."""
        points = self.mlp(features)
        points = F.normalize(points, dim=-1, eps=1e-12 if points.dtype.itemsize >= 4 else 1e-6)
        # The norm of a prototype stays 1, as with weight normalisation whose gain is frozen (DINO's norm_last_layer).
        exact = torch.promote_types(self.prototypes.dtype, torch.float32)
        return F.linear(points, _UnitRows.apply(self.prototypes.to(exact)).to(points.dtype))


class _UnitRows(torch.autograd.Function):
    """Rows at unit length; backward in two passes over what may be the largest matrix of a model, where the chain rule
    through the norm takes several."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        units = rows / lengths
        ctx.save_for_backward(units, lengths)
        return units

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        units, lengths = ctx.saved_tensors
        along = torch.linalg.vecdot(grad_outputs[0], units)[:, None]
        return torch.addcmul(grad_outputs[0], units, along, value=-1).div_(lengths)
