"""One rank of a small all-reduce: ``python -m astroclip_dist.doctor.rank BACKEND RANKS MEETING RANK``.

MEETING is a URL through which the ranks find each other: ``file:///...``, or ``tcp://HOST:PORT`` of the first one.
Rank 0 prints one line of JSON: the bus bandwidth of the all-reduce, 2 (W - 1) / W x bytes / seconds for W ranks (NVIDIA
nccl-tests, PERFORMANCE.md), so that it does not depend on their number; with one rank, bytes / seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

_ELEMENTS, _ROUNDS = {"gloo": 4 << 20, "nccl": 64 << 20}, 5
_TIMEOUT = timedelta(seconds=40)


def main() -> None:
    backend, ranks, meeting, rank = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    torch.set_num_threads(1)
    # With ranks on several machines, one of those that are here.
    device = torch.device("cuda", rank % torch.cuda.device_count()) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=ranks, timeout=_TIMEOUT)
    numbers = torch.full((_ELEMENTS[backend],), float(rank + 1), device=device)
    dist.all_reduce(numbers)
    total = ranks * (ranks + 1) / 2
    if not bool((numbers == total).all()):
        raise SystemExit(f"the sum over {ranks} ranks is wrong: {numbers[0].item()} instead of {total}")
    _wait(backend)
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        dist.all_reduce(numbers)
    _wait(backend)
    seconds = (time.perf_counter() - began) / _ROUNDS
    moved = numbers.numel() * numbers.element_size() * (2 * (ranks - 1) / ranks if ranks > 1 else 1)
    if rank == 0:
        print(json.dumps({"bytes_a_second": moved / seconds}))
    dist.destroy_process_group()
    sys.stdout.flush()
    # Not sys.exit: gloo's threads may hold up the interpreter's end.
    os._exit(0)


def _wait(backend: str) -> None:
    if backend == "nccl":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
