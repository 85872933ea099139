"""Cross-entropies between the teacher's targets and the student's logits (AstroCLIP equations A2 and A5).

With targets t that sum to 1 and a student's logits s, already divided by its temperature, the cross-entropy is
lse(s) - <t, s>, and its gradient softmax(s) - t. Each view's log-sum-exp and softmax are computed once, however many
targets it is compared with, and both a tile at a time: with 65,536 prototypes the logits of a micro-batch are the
largest tensors of a step, and no float32 copy of them, no softmax and no log-softmax of that size is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from astroclip_dist.objectives.dinov2.precision import at_least_float32

# Numbers in a tile: a CPU keeps such in its cache between the operations on them; a GPU wants few launches.
_CPU_TILE, _GPU_TILE = 2**18, 2**24


class CrossViewLoss(NamedTuple):
    """Means over samples and pairs of views; 0-d, float32 (float64 for such logits)."""

    of_all: Tensor
    """What is minimised."""
    of_global: Tensor
    """Of the pairs of two global views, detached."""
    of_local: Tensor
    """Of the pairs with a local view, detached."""


def cross_view_loss(student: Tensor, targets: Tensor, temperature: float) -> CrossViewLoss:
    """DINO's loss: each view of a sample predicts the teacher's targets for each other global view of it.

    It is the mean over samples and over the pairs of views (18 for two global and eight local ones): DINOv2's two terms
    for local and global views, each over the total number of pairs, in one.

    Args:
        student: (views, n, K) logits, any float dtype, global views first.
        targets: (global views, n, K), rows sum to 1, for the first of the views; no gradient passes to them.
        temperature: of the student.
    """
    # A view says nothing about itself.
    pairs = [[target for target in range(len(targets)) if target != view] for view in range(len(student))]
    of_views = _CrossEntropies.apply(student, targets, pairs, temperature).mean(dim=1)
    total, crossed = sum(map(len, pairs)), len(targets) * (len(targets) - 1)
    of_global, of_local = of_views.detach().split([len(targets), len(student) - len(targets)])
    return CrossViewLoss(of_views.sum() / total, of_global.sum() / crossed, of_local.sum() / (total - crossed))


def masked_patch_loss(student: Tensor, targets: Tensor, weights: Tensor, crops: int, temperature: float) -> Tensor:
    """iBOT's loss: the masked patches of a crop predict the teacher's targets, for the crop without mask.

    Args:
        student: (m, K) logits of the masked patches of some crops, any float dtype. Without any, the loss is a zero
            that still reaches the student, so that all ranks reduce the same gradients.
        targets: (m, K), rows sum to 1; no gradient passes to them.
        weights: (m,), each 1 / masked patches of its crop, so that crops count the same however much of them is masked.
        crops: number of the global crops, those without mask too, as in DINOv2.
        temperature: of the student.

    Returns:
        0-d, float32 (float64 for such logits), the sum of weights x cross-entropies over the crops.
    """
    entropies = _CrossEntropies.apply(student[None], targets[None], [[0]], temperature)
    return (entropies[0] * weights).sum() / crops


class _CrossEntropies(torch.autograd.Function):
    """(views, n) sums of a view's cross-entropies with the targets that it is paired with."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, targets: Tensor, pairs: Sequence[Sequence[int]], temperature: float
    ) -> Tensor:
        dtype = torch.promote_types(student.dtype, torch.float32)
        log_sum_exps = student.new_empty(student.shape[:2], dtype=dtype)
        entropies = torch.empty_like(log_sum_exps)
        for tile, wanted in _tiles(student, targets, pairs):
            logits = at_least_float32(student[tile]) / temperature
            log_sum_exps[tile] = logits.logsumexp(dim=1)
            entropies[tile] = len(pairs[tile[0]]) * log_sum_exps[tile] - logits.mul_(wanted).sum(dim=1)
        ctx.save_for_backward(student, targets, log_sum_exps)
        ctx.pairs, ctx.temperature = pairs, temperature
        return entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        student, targets, log_sum_exps = ctx.saved_tensors
        factors = grad_outputs[0] / ctx.temperature
        gradient = torch.empty_like(student)
        for tile, wanted in _tiles(student, targets, ctx.pairs):
            logits = at_least_float32(student[tile]) / ctx.temperature
            softmax = logits.sub_(log_sum_exps[tile][:, None]).exp_()
            gradient[tile] = softmax.mul_(len(ctx.pairs[tile[0]])).sub_(wanted).mul_(factors[tile][:, None])
        return gradient, None, None, None


def _tiles(
    student: Tensor, targets: Tensor, pairs: Sequence[Sequence[int]]
) -> Iterator[tuple[tuple[int, slice], Tensor]]:
    """Parts of the student's rows, each of one view, and the sum of the targets that they are paired with."""
    _, n, prototypes = student.shape
    height = max(1, (_GPU_TILE if student.is_cuda else _CPU_TILE) // prototypes)
    for view, paired in enumerate(pairs):
        for start in range(0, n, height):
            rows = slice(start, start + height)
            wanted = [targets[target, rows] for target in paired] or [targets.new_zeros(())]
            yield (view, rows), sum(wanted[1:], start=wanted[0])
