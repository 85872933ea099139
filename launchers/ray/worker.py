"""What runs in a worker of Ray Train: the training in a thread of an actor, which is asked to leave by a call."""

from __future__ import annotations

import os
from typing import Any

from astroclip_dist.config import RunConfig
from astroclip_dist.train.preemption import Notice
from launchers.ray.secret_names import require_secrets

# One a process: Ray starts a new process for every worker. Signals do not reach a thread; calls to the actor do.
_notice = Notice()


def train_on_worker(settings: dict[str, Any]) -> int:
    """Train on this rank.

    Args:
        settings: ``config``, the run's configuration as JSON.

    Returns:
        0 at the end of training, 75 when it was asked to leave.

    Raises:
        ConfigError: a secret of the job is not on this node.
    """
    require_secrets()
    import ray.train
    import torch

    from launchers.worker import work

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ray.train.get_context().get_local_world_size()))
    return work(RunConfig.model_validate_json(settings["config"]), _notice)


def ask_to_leave(reason: str) -> None:
    """Called on the worker's actor while it trains; the training saves at its next step, and ends."""
    _notice.give(reason)
