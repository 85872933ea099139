"""Targets from teacher logits by centring and sharpening (Caron et al. 2021, section 3.1)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from astroclip_dist.models.initial import Rule, constant


class Centring(nn.Module):
    """Softmax of the teacher's logits less their mean over recent steps.

    The centre moves once a step, by the mean over all rows that all ranks saw in all micro-batches of the step: sums
    and the number of rows are added up and travel in one all-reduce, so that ranks may hold different numbers of rows,
    as they do of masked patches, or none. (A mean of the ranks' means, as is usual, would depend on how the rows are
    spread.) The targets of a step use the centre that the steps before left.

    Args:
        prototypes: K, width of the logits.
        momentum: of the centre.
        group: the ranks that share the batch (default: all, or this process alone where there is no group).

    Attributes:
        centre: (1, K) float32, part of the module's state; it must not be cast to less with a model's weights.
    """

    centre: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.register_buffer("centre", torch.empty(1, prototypes))
        self._momentum, self._group = momentum, group
        self._statistics: Tensor | None = None

    def initial_values(self) -> dict[str, Rule]:
        return {"centre": constant(0.0)}

    @torch.no_grad()
    def targets(self, logits: Tensor, temperature: float) -> Tensor:
        """Targets of some rows, which count for the next centre.

        Args:
            logits: (n, K), any float dtype; n may be 0.
            temperature: of the teacher.

        Returns:
            (n, K) float32 (float64 for such logits), rows sum to 1.
        """
        self._count(logits)
        # The difference has the centre's precision or the logits', whichever is higher.
        return (logits - self.centre).div_(temperature).softmax(dim=-1)

    @torch.no_grad()
    def update(self) -> None:
        """Move the centre, after a step that was applied. All ranks must call it."""
        statistics = self._so_far()
        self.discard()
        if dist.is_initialized():
            dist.all_reduce(statistics, group=self._group)
        total, rows = statistics[:-1], statistics[-1:]
        # Decided on the device, so that the host needs not wait: without a row anywhere the centre stays.
        weight = (rows > 0).to(self.centre.dtype) * (1 - self._momentum)
        self.centre.lerp_((total / rows.clamp(min=1)).to(self.centre.dtype), weight)

    def discard(self) -> None:
        """Forget the rows of a step that was skipped: they may not be finite."""
        self._statistics = None

    def _count(self, logits: Tensor) -> None:
        self._statistics = self._so_far()
        self._statistics[:-1] += logits.sum(dim=0, dtype=torch.promote_types(logits.dtype, torch.float32))
        self._statistics[-1] += len(logits)

    def _so_far(self) -> Tensor:
        """(K + 1,) sum of the logits and number of rows since the last step.

        In float64, so that sums over micro-batches and ranks hardly depend on how the rows are spread over them.
        """
        if self._statistics is None:
            return self.centre.new_zeros(self.centre.shape[1] + 1, dtype=torch.float64)
        return self._statistics
