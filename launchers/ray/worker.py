"""What runs in a worker of Ray Train: the training in a thread of an actor, which is asked to leave by a call."""

from __future__ import annotations

import os
from typing import Any

import psutil

from astroclip_dist.config import RunConfig
from astroclip_dist.machine_limits import threads_each
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

    from launchers.worker import work

    share_cores(ray.train.get_context().get_local_world_size())
    return work(RunConfig.model_validate_json(settings["config"]), _notice)


def share_cores(workers: int) -> None:
    """Compute in as many threads as this worker's part of its node has cores, where neither the job nor the node says
    how many. There Ray does: as many as the CPUs of a worker, which is one whatever the node has."""
    import ray
    import torch

    given = psutil.Process(os.getppid()).environ() | ray.get_runtime_context().runtime_env.get("env_vars", {})
    if "OMP_NUM_THREADS" not in given:
        torch.set_num_threads(threads_each(workers))


def ask_to_leave(reason: str) -> None:
    """Called on the worker's actor while it trains; the training saves at its next step, and ends."""
    _notice.give(reason)
