"""Steps that are not applied: which, what is said of them, and how many a run may have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from astroclip_dist.config.run import Health
from astroclip_dist.errors import DataError
from astroclip_dist.parallel.process_group import Ranks
from astroclip_dist.train.health.spikes import LossHistory

NOT_FINITE, SPIKE = "not finite", "spike"


def why_skip(loss: float, history: LossHistory, health: Health) -> str | None:
    """Why a step with this loss, agreed by all ranks, is not to be applied; None: it is."""
    if not math.isfinite(loss):
        return NOT_FINITE
    return SPIKE if health.loss_spike is not None and history.deviations(loss) > health.loss_spike else None


def suspects(ranks: Ranks, keys: Sequence[str], finite: Tensor, loss: Tensor) -> tuple[list[str], list[float]]:
    """Where to look for the cause of a skipped step; called by all ranks together.

    Args:
        keys: n samples of this rank's part of the batch.
        finite: (n,) bool, whether their inputs are finite.
        loss: 0-d, of this rank's part.

    Returns:
        Keys of all samples of the global batch whose inputs are not finite, and the loss of each rank's part.
    """
    mine = [key for key, good in zip(keys, finite.tolist(), strict=True) if not good], loss.item()
    found: list[tuple[list[str], float]] = [mine] * ranks.world_size
    dist.all_gather_object(found, mine)
    return [key for part, _ in found for key in part], [part for _, part in found]


def check_budget(skipped_steps: int, health: Health) -> None:
    """
    Raises:
        DataError: more steps were skipped, over the whole run, than may be.
    """
    if skipped_steps > health.skipped_steps_budget:
        spikes = "" if health.loss_spike is None else ", or a loss that stands out"
        raise DataError(
            "health.skipped_steps_budget",
            f"{skipped_steps} steps with a loss or gradient that is not finite{spikes}; "
            f"{health.skipped_steps_budget} are allowed",
            "events.jsonl in the run folder names the samples that are not finite: clean the data; "
            "where it names none, lower optimizer.lr.",
        )
