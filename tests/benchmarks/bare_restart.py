"""The least that a restarted worker can do: import torch, join its group, make a step. See ``recovery_time``."""

from __future__ import annotations

import os
import time

import torch
import torch.distributed as dist
from torch import nn


def main() -> None:
    """Print when, by the monotonic clock, the step was done."""
    dist.init_process_group("gloo")
    model = nn.parallel.DistributedDataParallel(nn.Linear(64, 64))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(8, 64)).square().mean().backward()
    optimizer.step()
    dist.barrier()
    print(time.monotonic(), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
