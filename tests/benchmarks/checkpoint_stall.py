"""Stall of training by a save in the background, over that by the same save waited for, on S3.

Two ranks train a small model on the CPU, under DDP, so that each writes half of the state. Training stands still while
``begin`` runs, and in the calls at step boundaries that go on with a save: that is all of a background save's stall,
the longest of the ranks counts. Both kinds take turns, to a real S3 server (SeaweedFS) on this machine and to a local
folder. Server and ranks share its cores: the table shows how much slower steps are while a save is written, too.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from astroclip_dist.config.engine import DdpEngine
from astroclip_dist.config.run import Checkpoint, Optimizer
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.models.initial import InitialValues
from astroclip_dist.parallel.engines import Engine, StepRates
from astroclip_dist.parallel.engines.ddp import Ddp
from astroclip_dist.parallel.process_group import Ranks
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import Checkpointer, Progress, describe
from tests.benchmarks.result import Result, Size, paired_ratio, print_result, size_asked_for
from tests.benchmarks.s3_stream import BUCKET, OBJECT_STORE, start_server

RANKS, LAYERS, ROWS = 2, 6, 64
PATIENCE_S = 500
# width of a layer, rounds
SIZES: dict[Size, tuple[int, int]] = {"small": (256, 1), "default": (2048, 5), "large": (3072, 8)}


@dataclass(frozen=True)
class Round:
    """One save, as a rank saw it; seconds.

    Attributes:
        stalls: how long training stood still: in ``begin``, and at each step boundary until the save was complete.
        steps: of training while the save was written.
        quiet: of training before it.
        took_s: from ``begin`` to the complete checkpoint.
    """

    stalls: list[float]
    steps: list[float]
    quiet: list[float]
    took_s: float

    @property
    def stall(self) -> float:
        return sum(self.stalls)


class Layers(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(*(nn.Linear(width, width) for _ in range(LAYERS)))

    def forward(self, values: Tensor) -> Tensor:
        for layer in self:
            values = layer(values)
        return values


class Trainee:
    """One rank of a training that saves now and then."""

    def __init__(self, ranks: Ranks, width: int) -> None:
        module = Layers(width)
        self.engine: Engine = Ddp(DdpEngine(), ranks, module, Optimizer(lr=1e-4), InitialValues(module, seed=0))
        self._inputs = torch.randn(ROWS, width)
        self._step = 0

    def checkpointer(self, url: str, *, background: bool) -> Checkpointer:
        config = Checkpoint(background=background, keep_last=1)
        return Checkpointer(Store(url), self.engine, {}, config, RunSteps(10**9, 10**9, ROWS))

    def step(self) -> float:
        began = time.perf_counter()
        self.engine.backward(self.engine.forward(self._inputs).square().mean(), last=True)
        self.engine.step(StepRates(1e-4, 0.0))
        self._step += 1
        return time.perf_counter() - began

    def round(self, checkpointer: Checkpointer) -> Round:
        """Some steps, a save, and steps until it is complete."""
        quiet = [self.step() for _ in range(4)]
        dist.barrier()
        began = time.perf_counter()
        saved = checkpointer.begin(Progress(self._step))
        stalls, steps = [time.perf_counter() - began], []
        while saved is None:
            steps.append(self.step())
            saving = torch.tensor(float(checkpointer.saving))
            dist.all_reduce(saving)  # which the loop's own all-reduce carries along: no part of the stall
            boundary = time.perf_counter()
            saved = checkpointer.advance(saving.item() > 0)
            stalls.append(time.perf_counter() - boundary)
        return Round(stalls, steps, quiet, time.perf_counter() - began)


def rank(number: int, folder: str, width: int, rounds: int, urls: dict[str, str], answer: Connection) -> None:
    """One process: all rounds, the first of which makes plans and buffers and is not kept."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/meeting", RANKS)
    dist.init_process_group("gloo", store=store, rank=number, world_size=RANKS, timeout=timedelta(seconds=PATIENCE_S))
    trainee = Trainee(Ranks(number, RANKS, number, torch.device("cpu"), made_group=True), width)
    savers = {
        (where, background): trainee.checkpointer(f"{url}-{background}", background=background)
        for where, url in urls.items()
        for background in (False, True)
    }
    kept: dict[tuple[str, bool], list[Round]] = {case: [] for case in savers}
    for turn in range(rounds + 1):
        for case, saver in savers.items():
            seen = trainee.round(saver)
            if turn:
                kept[case].append(seen)
    state = sum(tensor.nbytes for tensor in trainee.engine.state().values())
    answer.send((kept, state))
    dist.barrier()
    os._exit(0)


def measure(
    width: int, rounds: int, folder: str, urls: dict[str, str]
) -> tuple[dict[tuple[str, bool], list[Round]], int]:
    """Rounds of each case as the slower rank saw them, and bytes of the state."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for number in range(RANKS):
        here, there = context.Pipe(duplex=False)
        arguments = (number, folder, width, rounds, urls, there)
        processes.append(context.Process(target=rank, args=arguments, daemon=True))
        processes[-1].start()
        there.close()
        pipes.append(here)
    answers = []
    for number, pipe in enumerate(pipes):
        if not pipe.poll(PATIENCE_S):
            raise RuntimeError(f"rank {number} is not done in {PATIENCE_S} s")
        answers.append(pipe.recv())
    for process in processes:
        process.join(30)
    kept = {
        case: [
            max(seen, key=lambda one: one.stall) for seen in zip(*(answer[0][case] for answer in answers), strict=True)
        ]
        for case in answers[0][0]
    }
    return kept, answers[0][1]


def written(url: str) -> int:
    """Bytes of the newest checkpoint, manifest included."""
    return [found.bytes for found in describe(Store(url)) if found.is_complete][-1]


def main() -> None:
    width, rounds = SIZES[size_asked_for(__doc__)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is stopped, too
    with tempfile.TemporaryDirectory(prefix="astroclip-checkpoint-stall-") as folder:
        start_server(Path(folder) / "server")
        try:
            urls = {"S3": f"s3://{BUCKET}/run", "local folder": f"{folder}/run"}
            kept, state = measure(width, rounds, folder, urls)
            sizes = {where: written(f"{url}-True") / state for where, url in urls.items()}
        finally:
            stop = [sys.executable, str(OBJECT_STORE), "stop", str(Path(folder) / "server"), "--grace", "0"]
            subprocess.run(stop, check=True, timeout=60, stdout=subprocess.DEVNULL)
    ratios = {
        where: paired_ratio([one.stall for one in kept[where, True]], [one.stall for one in kept[where, False]])
        for where in urls
    }
    rows: list[list[object]] = []
    for (where, background), seen in kept.items():
        quiet = statistics.median(step for one in seen for step in one.quiet)
        busy = statistics.median(step for one in seen for step in one.steps) if background else float("nan")
        rows.append(
            [
                f"{where}, {'background' if background else 'waited for'}",
                1e3 * statistics.median(one.stall for one in seen),
                1e3 * statistics.median(one.stalls[0] for one in seen) if background else "-",
                1e3 * max(one.stall for one in seen),
                f"{statistics.median(one.took_s for one in seen):.2f}",
                1e3 * quiet,
                1e3 * busy if background else "-",
                busy / quiet if background else "-",
                f"{ratios[where]:.4f}" if background else "-",
                f"{sizes[where]:.5f}",
            ]
        )
    result = Result("checkpoint_stall", ratios["S3"], f"<= {1 / 30:.4f}")
    size = max(sizes.values())
    print_result(
        result,
        f"state of {state / 1e6:.0f} MB, {RANKS} ranks; medians of {rounds} rounds, of the slower rank",
        [
            "",
            "stall, ms",
            "of it copying",
            "longest",
            "complete after, s",
            "quiet step, ms",
            "step during save",
            "over quiet",
            "stall: background / waited",
            "bytes written / state",
        ],
        rows,
        [f"bytes written / state: {size:.5f}, goal <= 1.05: {'holds' if size <= 1.05 else 'does not hold'}"],
    )


if __name__ == "__main__":
    main()
