"""The ranks of a run: who am I, which device is mine, and the group that connects us."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist

from astroclip_dist.errors import ConfigError
from astroclip_dist.freed_memory import keep_freed_memory


@dataclass(frozen=True)
class Ranks:
    """This process among all of a run."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    made_group: bool

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def join(device: Literal["auto", "cpu", "cuda"], timeout_s: float) -> Ranks:
    """Join the process group that the launcher describes by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.

    A process that was started alone, without these variables, makes a group of one.

    Raises:
        ConfigError: more ranks on this machine than it has GPUs.
    """
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        devices = torch.cuda.device_count()
        if local_rank >= devices:
            raise ConfigError("workers", f"rank {local_rank} of this machine", f"It has {devices} GPUs: one a worker.")
        torch.cuda.set_device(chosen)
    else:
        keep_freed_memory()
    made_here = not dist.is_initialized()
    if made_here:
        alone: dict[str, Any] = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        dist.init_process_group(
            # CPU tensors (counters, checkpoint plans) travel over gloo beside NCCL.
            "cpu:gloo,cuda:nccl" if use_cuda else "gloo",
            timeout=timedelta(seconds=timeout_s),
            device_id=chosen if use_cuda else None,
            **(alone if "RANK" not in os.environ else {}),
        )
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, chosen, made_here)


def leave(ranks: Ranks) -> None:
    """Close the process group, unless a launcher made it and will close it."""
    if ranks.made_group:
        dist.destroy_process_group()


def set_timeout(seconds: float) -> None:
    """How long collectives of all groups may take from now on."""
    for group in dist.distributed_c10d._world.pg_map:
        dist.set_timeout(timedelta(seconds=seconds), group)


def collectives_entered() -> int:
    """How many this rank has entered since it joined, over all groups; on GPUs those of NCCL."""
    groups: list[Any] = list(dist.distributed_c10d._world.pg_map)
    return sum(group._get_sequence_number_for_group() for group in groups)
