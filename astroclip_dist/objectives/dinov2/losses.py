"""Cross-entropies between the teacher's targets and the student's logits (AstroCLIP equations A2 and A5).

With targets t that sum to 1 and a student's logits s, already divided by its temperature, the cross-entropy is
lse(s) - <t, s>: each view's log-sum-exp is computed once, however many targets it is compared with, and no log-softmax
is held in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from astroclip_dist.objectives.dinov2.precision import as_written, at_least_float32


def cross_view_loss(student: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """DINO's loss: each view of a sample predicts the teacher's targets for each other global view of it.

    It is the mean over samples and over the pairs of views (18 for two global and eight local ones): DINOv2's two terms
    for local and global views, each over the total number of pairs, in one.

    Args:
        student: (views, n, K) logits, any float dtype, global views first.
        targets: (global views, n, K), rows sum to 1, for the first of the views; no gradient passes to them.
        temperature: of the student.

    Returns:
        0-d, float32 (float64 for such logits).
    """
    student = at_least_float32(student) / temperature
    views, global_views = len(student), len(targets)
    with as_written(student):
        agreement = torch.einsum("tnk,vnk->tvn", targets.detach().to(student.dtype), student).mean(dim=2)
    # A view that is compared with itself counts for nothing.
    others = 1 - torch.eye(global_views, views, dtype=student.dtype, device=student.device)
    log_sum_exp = student.logsumexp(dim=2).mean(dim=1)
    return ((log_sum_exp - agreement) * others).sum() / (global_views * (views - 1))


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
    student = at_least_float32(student) / temperature
    with as_written(student):
        agreement = torch.einsum("mk,mk->m", targets.detach().to(student.dtype), student)
    return (weights.to(student.dtype) * (student.logsumexp(dim=1) - agreement)).sum() / crops
