"""Samples a second of a self-distillation step, over those of one made crop by crop from timm's and lightly's parts.

Same crops, masks, sizes and precision (fp32), a process for each, all its threads; a step is the teacher's and the
student's forward, backward, clipping, AdamW and the moving average, without reading and augmentation. What differs:
crops are packed, so that a linear layer runs once for all ten views; stochastic depth skips the work of dropped
branches instead of multiplying it by zero; losses go over the logits a tile at a time; the process keeps freed memory,
which the other leaves to the C library's defaults, as such code does.

The table also has the FLOP/s of both as a share of the best rate of a large matrix product, measured in the same
rounds. FLOPs are those of matrix products and attention, counted by torch as they run: what a branch skips is not
counted.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import numpy as np
import torch

from astroclip_dist.config import RunConfig
from astroclip_dist.config.objective import ImageDino
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.config.strict import validated
from astroclip_dist.data.ordering.order import Cursor
from astroclip_dist.data.stored.manifest import ImageLayout, key_hash
from astroclip_dist.data.streaming.stream import Batch
from astroclip_dist.objectives import Setting, objective_of
from astroclip_dist.objectives.dinov2.crops import Crops
from astroclip_dist.parallel.engines import StepRates, build_engine
from astroclip_dist.parallel.process_group import join, leave
from tests.benchmarks.dinov2_peer import PerCropDino
from tests.benchmarks.result import Result, Size, interleaved, paired_ratio, print_result, size_asked_for
from tests.counted_flops import counted_flops

# name: width, heads; samples of a step
MODELS: dict[Size, dict[str, tuple[int, int, int]]] = {
    "small": {"ViT-Ti/12": (192, 3, 2)},
    "default": {"ViT-S/12": (384, 6, 8), "ViT-B/12": (768, 12, 4)},
    "large": {"ViT-S/12": (384, 6, 16), "ViT-B/12": (768, 12, 8), "ViT-L/12": (1024, 16, 4)},
}
REPEATS: dict[Size, int] = {"small": 1, "default": 4, "large": 8}
MATRIX = 2048
RATES = StepRates(lr=2e-4, weight_decay=0.04)


def configure(width: int, heads: int, samples: int, small: bool) -> RunConfig:
    """The published recipe at another width; stochastic depth as in AstroCLIP's code."""
    depth = 24 if width == 1024 else 2 if small else 12
    return validated(
        RunConfig,
        {
            "run": "unused",
            "data": "unused",
            "device": "cpu",
            "length": "1000 steps",
            "batch": {"global_size": samples, "lanes": 1},
            "optimizer": {"lr": RATES.lr, "weight_decay": RATES.weight_decay, "clip_norm": 3.0},
            "objective": {
                "name": "dinov2",
                "image": {"width": width, "depth": depth, "heads": heads},
                "head": {"prototypes": 1024} if small else {},
                "drop_path": 0.3,
            },
        },
    )


def random_batch(samples: int) -> Batch:
    keys = [f"galaxy-{number}" for number in range(samples)]
    ids = np.array([key_hash(key) for key in keys], np.uint64)
    images = torch.rand(samples, 3, 152, 152, generator=torch.Generator().manual_seed(0))
    return Batch(Cursor(), keys, ids, np.zeros(samples, np.int64), {"image": images})


class Ours:
    """The step as the training loop does it."""

    def __init__(self, config: RunConfig) -> None:
        ranks = join("cpu", 60.0)
        steps = RunSteps(total=1000, per_epoch=1000, global_batch=config.batch.global_size)
        self._objective = objective_of(Setting(config, ImageLayout(), None, False, steps, ranks.device))
        self._engine = build_engine(config, ranks, self._objective.build())
        self._engine.train()
        self.inputs = self._objective.prepare(random_batch(config.batch.global_size))
        self._ranks, self._step = ranks, 0

    def step(self) -> float:
        loss = self._objective.accumulate(self._engine, self.inputs, self._step)["loss"]
        if not torch.isfinite(self._engine.step(RATES)):
            raise RuntimeError("the gradient is not finite, so the step was not applied")
        self._objective.after_step(self._engine, self._step)
        self._step += 1
        return float(loss)

    def close(self) -> None:
        leave(self._ranks)


def peak_flops(matrix: torch.Tensor, result: torch.Tensor) -> float:
    """FLOP/s of a large matrix product, the best of several."""
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(matrix, matrix, out=result)
        best = min(best, time.perf_counter() - began)
    return 2 * len(matrix) ** 3 / best


class Peer:
    """Steps of the peer in a process of its own, one at a time."""

    def __init__(self, config: RunConfig, inputs: Crops) -> None:
        self._samples = config.batch.global_size
        self._mine, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve_peer, args=(theirs, config, inputs), daemon=True)
        self._process.start()

    def ask(self, question: str) -> float:
        """``flops`` of a step, or the ``rate`` of one: samples a second."""
        self._mine.send(question)
        return self._mine.recv()

    def close(self) -> None:
        self._process.terminate()
        self._process.join()


def _serve_peer(connection: Connection, config: RunConfig, inputs: Crops) -> None:
    assert isinstance(config.objective, ImageDino)
    peer, samples = PerCropDino(config.objective, config.optimizer), config.batch.global_size
    groups = [list(group.split(samples)) for group in (inputs.global_crops, inputs.local_crops, inputs.masks)]
    step = partial(peer.step, *groups)
    while True:
        answer = counted_flops(step) if connection.recv() == "flops" else rate(step, samples)
        connection.send(answer)


def rate(step: Callable[[], float], samples: int) -> float:
    """Samples a second of one step."""
    began = time.perf_counter()
    step()
    return samples / (time.perf_counter() - began)


def compare(name: str, size: Size) -> tuple[float, list[list[object]]]:
    """The ratio of samples a second of one model, and its rows of the table."""
    width, heads, samples = MODELS[size][name]
    config = configure(width, heads, samples, size == "small")
    ours = Ours(config)
    (crops,) = ours.inputs
    peer = Peer(config, crops)
    flops = {"ours": counted_flops(ours.step), "timm + lightly": peer.ask("flops")}
    matrix, result = torch.rand(2, MATRIX, MATRIX)
    rates = interleaved(
        {
            "ours": partial(rate, ours.step, samples),
            "timm + lightly": partial(peer.ask, "rate"),
            "peak": partial(peak_flops, matrix, result),
        },
        REPEATS[size],
    )
    peer.close()
    ours.close()
    rows: list[list[object]] = []
    for who in flops:
        shares = [found * flops[who] / samples / peak for found, peak in zip(rates[who], rates["peak"], strict=True)]
        rows.append(
            [
                f"{name}, {who}",
                statistics.median(rates[who]),
                paired_ratio(rates["ours"], rates[who]),
                flops[who] / samples / 1e9,
                statistics.median(rates[who]) * flops[who] / samples / 1e9,
                statistics.median(shares),
            ]
        )
    return paired_ratio(rates["ours"], rates["timm + lightly"]), rows


def main() -> None:
    size = size_asked_for(__doc__)
    ratios, rows = {}, []
    for name in MODELS[size]:
        ratios[name], found = compare(name, size)
        rows += found
    print_result(
        Result("dinov2_step", min(ratios.values()), ">= 1.5"),
        f"{torch.get_num_threads()} threads, fp32, 2 global and 8 local crops; medians of {REPEATS[size]} rounds; the "
        "ratio is the smallest of the models",
        ["", "samples/s", "ours / this", "GFLOP a sample", "GFLOP/s", "of peak"],
        rows,
    )


if __name__ == "__main__":
    main()
