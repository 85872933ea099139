"""What the ranks agree on once a step, before its gradients are applied: one small all-reduce."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Agreed:
    """The same on all ranks.

    Attributes:
        loss: mean over ranks.
        news: some rank put samples aside that the others do not know of.
        preempted: some rank was asked to leave.
        save_due: the clock of some rank says that it is time to save.
        saving: some rank still writes its part of a checkpoint.
    """

    loss: float
    news: bool
    preempted: bool
    save_due: bool
    saving: bool


def agree(loss: Tensor, *, news: bool, preempted: bool, save_due: bool, saving: bool) -> Agreed:
    """Called by all ranks together.

    Args:
        loss: 0-d, of this rank's part of the global batch, on the device that its collectives run on.
    """
    told = torch.stack([loss.float(), *loss.new_tensor([news, preempted, save_due, saving], dtype=torch.float32)])
    dist.all_reduce(told, dist.ReduceOp.AVG)
    mean, *flags = told.tolist()
    return Agreed(mean, *(flag > 0 for flag in flags))
