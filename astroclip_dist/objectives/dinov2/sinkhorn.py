"""Targets from teacher logits by the Sinkhorn-Knopp algorithm, over the rows of all ranks.

As DINOv2 uses it, after Caron et al. 2020 ("Unsupervised learning of visual features by contrasting cluster
assignments", section 3.1): find Q_ij = a_i exp(l_ij / T) b_j such that all prototypes j get the same total weight, and
all rows i the same, by scaling columns and rows in turn, rows last.

Only the ratios of a, and of b, matter: the number of rows cancels, so ranks may hold different numbers of them.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from astroclip_dist.objectives.dinov2.precision import as_written, at_least_float32


@torch.no_grad()
def sinkhorn_knopp(
    logits: Tensor, temperature: float, iterations: int = 3, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Targets of this rank's rows. All ranks must call it, also those without a row.

    One all-reduce of a number, and one of K numbers an iteration.

    Args:
        logits: (n, K), any float dtype; n may be 0, and another on each rank. Logits of unit prototypes lie in [-1, 1];
            such that span more than some 80 temperatures, over all ranks, give targets that are not finite.
        temperature: of the teacher.
        iterations: at least 1.
        group: the ranks that share the batch (default: all, or this process alone where there is no group).

    Returns:
        (n, K) float32 (float64 for such logits), rows sum to 1.
    """
    logits = at_least_float32(logits)
    highest = logits.new_full((), -torch.inf) if len(logits) == 0 else logits.max()
    if dist.is_initialized():
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
    kernel = (logits - highest).div_(temperature).exp_()
    rows, columns = kernel.new_ones(len(kernel)), kernel.new_ones(kernel.shape[1])
    with as_written(kernel):
        for _ in range(iterations):
            weights = rows @ kernel
            if dist.is_initialized():
                dist.all_reduce(weights, group=group)
            # Equal weights whose total stays what it was, so that numbers stay in range however many iterations.
            columns = weights.mean() / weights
            rows = (kernel @ columns).reciprocal_()
    return kernel.mul_(columns).mul_(rows[:, None])
