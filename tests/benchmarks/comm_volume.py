"""Bytes that a rank sends for the contrastive loss, over the least that sends embeddings forward and gradients back.

The least, with W ranks that hold n pairs of D numbers each: forward, each of a rank's 2n embeddings goes to the W - 1
others; backward, for each of those embeddings a gradient comes from each of the others. That is (W - 1) n D numbers for
each modality and direction, (W - 1) / W of B x D, as a ring all-gather and a ring reduce-scatter send: 4 (W - 1) n D.

Bytes are those that the kernel counts on a rank's TCP connections (TCP_INFO: sent less sent again), so whatever gloo
does beneath a collective is in them, its headers too. They are held against arithmetic, and the measure breaks where
the two part by more than 1%.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from tests.benchmarks.contrastive_memory import LOSSES, WORLD_SIZE, inputs
from tests.benchmarks.result import Result, Size, print_result, size_asked_for
from tests.rank_pool import RankPool

# global batch, width of the embeddings
SIZES: dict[Size, tuple[int, int]] = {"small": (1024, 64), "default": (8192, 512), "large": (16384, 1024)}
FLOAT = 4
HEADERS = 10_000  # bytes: headers and barriers, which are all but nothing beside the sizes that count
# Offsets in Linux's struct tcp_info of tcpi_bytes_sent and tcpi_bytes_retrans, since Linux 4.19.
TCP_INFO_SENT, TCP_INFO_SENT_AGAIN, TCP_INFO_SIZE = 200, 208, 216
Step = Literal["ours", "local rows", "gather alone"]


def bytes_sent() -> int:
    """By this process, over all TCP connections that it has open."""
    total = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that listed the folder
            if str(descriptor.readlink()).startswith("socket:"):
                total += _sent_over(int(descriptor.name))
    return total


def _sent_over(descriptor: int) -> int:
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
            return 0
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
    if len(info) < TCP_INFO_SIZE:
        raise RuntimeError("this kernel does not count the bytes of a connection: Linux 4.19 or newer is needed")
    sent: int = struct.unpack_from("=Q", info, TCP_INFO_SENT)[0]
    again: int = struct.unpack_from("=Q", info, TCP_INFO_SENT_AGAIN)[0]
    return sent - again


def step(name: Step, batch: int, width: int) -> tuple[int, int]:
    """On a rank: bytes sent in forward and in backward. The first step, which opens connections, is not counted."""
    for _ in range(2):
        images, spectra, scale = inputs(batch, width)
        counts = [_count_when_all_are_here()]
        if name == "gather alone":
            dist.all_gather_single(torch.empty(batch, width), images.detach())
            counts.append(_count_when_all_are_here())
        else:
            loss = LOSSES[name](images, spectra, scale)
            counts.append(_count_when_all_are_here())
            loss.backward()
        counts.append(_count_when_all_are_here())
    return counts[1] - counts[0], counts[2] - counts[1]


def _count_when_all_are_here() -> int:
    """Once everybody has received everything, everything is sent. A barrier's own bytes, some 300, are counted."""
    dist.barrier()
    return bytes_sent()


def expected(name: Step, batch: int, width: int) -> tuple[int, int]:
    """Bytes by arithmetic, forward and backward, on gloo.

    Gloo carries out a reduce-scatter as an all-reduce, which sends every number twice.
    """
    once = (WORLD_SIZE - 1) * (batch // WORLD_SIZE) * FLOAT  # one number a pair, gathered or reduce-scattered
    all_reduce = 2 * once
    each: dict[Step, tuple[int, int]] = {
        "ours": (once * width + 2 * all_reduce, all_reduce * width),
        "local rows": (2 * once * width, 2 * once * width),
        "gather alone": (once * width, 0),
    }
    return each[name]


def main() -> None:
    batch, width = SIZES[size_asked_for(__doc__)]
    labels: dict[Step, str] = {
        "ours": "ours",
        "local rows": "gather of both, n x B logits",
        "gather alone": "for comparison: gather of one",
    }
    ranks = RankPool(WORLD_SIZE)
    try:
        counted = {name: max(ranks.run(step, name, batch, width), key=sum) for name in labels}
    finally:
        ranks.close()
    least = 4 * (WORLD_SIZE - 1) * (batch // WORLD_SIZE) * width * FLOAT
    rows: list[list[object]] = []
    for name, label in labels.items():
        by_arithmetic = sum(expected(name, batch, width))
        if abs(sum(counted[name]) - by_arithmetic) > 0.01 * by_arithmetic + HEADERS:
            raise RuntimeError(f"{label}: {sum(counted[name])} bytes counted, {by_arithmetic} by arithmetic")
        forward, backward = (count / 1e6 for count in counted[name])
        rows.append([label, forward, backward, by_arithmetic / 1e6, sum(counted[name]) / least])
    with_ring = (expected("ours", batch, width)[0] + expected("gather alone", batch, width)[0]) / least
    print_result(
        Result("comm_volume", sum(counted["ours"]) / least, "<= 1.0"),
        f"global batch {batch}, {WORLD_SIZE} ranks on gloo, embeddings of {width}; "
        f"the least for embeddings forward and gradients back: {least / 1e6:.4g} MB",
        ["", "forward, MB", "backward, MB", "by arithmetic, MB", "over the least"],
        rows,
        [
            "Gloo reduce-scatters by an all-reduce, which sends twice as much. Where each number is sent once, "
            f"as by NCCL's ring, ours is {with_ring:.4g} of the least (by arithmetic)."
        ],
    )


if __name__ == "__main__":
    main()
