"""Peak memory of logits in the contrastive loss over 4 ranks, over that of the usual differentiable gather.

The alternative is what open_clip's ``local_loss`` with ``gather_with_grad`` does: gather the embeddings with
``torch.distributed.nn.functional.all_gather``, then cross-entropy on this rank's rows of logits, n x B. Simpler code
builds all B x B logits on every rank. Forward and backward are measured.

torch's profiler sees every allocation, also those inside of an operation. Bytes of logits do not depend on the width of
the embeddings, so they are measured with embeddings one number wide, which leaves hardly anything else; the peak of all
that the loss allocates is shown beside it at the real width. Memory is exact, the same in every run.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from astroclip_dist.parallel.contrastive import contrastive_loss
from tests.benchmarks.result import Result, Size, interleaved, paired_ratio, print_result, size_asked_for
from tests.rank_pool import RankPool

WORLD_SIZE = 4
# global batch, width of the embeddings, repeats
SIZES: dict[Size, tuple[int, int, int]] = {
    "small": (2048, 16, 1),
    "default": (8192, 512, 3),
    "large": (16384, 1024, 5),
}
LARGE_RUN = {"small": 4096, "default": 65_536, "large": 65_536}
TIME_GOAL = 1.1  # ours / gather
Variant = Literal["ours", "local rows", "all rows"]


def gathered_loss(images: Tensor, spectra: Tensor, scale: Tensor, local_rows: bool) -> Tensor:
    """The loss by a differentiable gather; the mean over ranks is the loss of the global batch."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # torch has a successor of its all_gather, not yet public
    all_images, all_spectra = torch.cat(all_gather(images)), torch.cat(all_gather(spectra))
    if local_rows:
        first = dist.get_rank() * len(images)
        target = torch.arange(first, first + len(images))
        by_image, by_spectrum = scale * images @ all_spectra.T, scale * spectra @ all_images.T
    else:
        target = torch.arange(len(all_images))
        by_image = scale * all_images @ all_spectra.T
        by_spectrum = by_image.T
    return (F.cross_entropy(by_image, target) + F.cross_entropy(by_spectrum, target)) / 2


LOSSES: dict[Variant, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ours": contrastive_loss,
    "local rows": lambda images, spectra, scale: gathered_loss(images, spectra, scale, True),
    "all rows": lambda images, spectra, scale: gathered_loss(images, spectra, scale, False),
}


def inputs(batch: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(dist.get_rank())
    images, spectra = torch.randn(2, batch // WORLD_SIZE, width, generator=generator)
    return (
        F.normalize(images, dim=1).requires_grad_(),
        F.normalize(spectra, dim=1).requires_grad_(),
        torch.tensor([15.5], requires_grad=True),
    )


def step(variant: Variant, batch: int, width: int) -> tuple[float, float]:
    """On a rank: the loss, and the seconds that forward and backward took."""
    arguments = inputs(batch, width)
    dist.barrier()
    began = time.perf_counter()
    loss = LOSSES[variant](*arguments)
    loss.backward()
    return loss.item(), time.perf_counter() - began


def peak(variant: Variant, batch: int, width: int) -> int:
    """On a rank: the most bytes that tensors made by the loss held at once."""
    arguments = inputs(batch, width)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        LOSSES[variant](*arguments).backward()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


def main() -> None:
    size = size_asked_for(__doc__)
    batch, width, repeats = SIZES[size]
    large_run = LARGE_RUN[size]
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own lines, on every rank
    timed: tuple[Variant, ...] = ("ours", "local rows")
    losses: dict[Variant, float] = {}
    ranks = RankPool(WORLD_SIZE, patience_s=600.0)

    def seconds(variant: Variant) -> float:
        answers = ranks.run(step, variant, batch, width)
        losses[variant] = statistics.mean(loss for loss, _ in answers)
        return max(took for _, took in answers)

    try:
        logits = {variant: max(ranks.run(peak, variant, batch, 1)) for variant in LOSSES}
        everything = {variant: max(ranks.run(peak, variant, batch, width)) for variant in timed}
        at_large = max(ranks.run(peak, "ours", large_run, 1))
        times = interleaved({variant: partial(seconds, variant) for variant in timed}, repeats)
    finally:
        ranks.close()
    if abs(losses["ours"] - losses["local rows"]) > 1e-4:
        raise RuntimeError(f"the losses differ, so the comparison means nothing: {losses}")
    labels = {"ours": "ours: tiles", "local rows": "gather, n x B logits", "all rows": "gather, B x B logits"}
    slower = {variant: paired_ratio(times["ours"], times[variant]) for variant in timed}
    rows: list[list[object]] = [
        [
            labels[variant],
            f"{batch:,}",
            logits[variant] / 1e6,
            logits["ours"] / logits[variant],
            everything[variant] / 1e6,
            statistics.median(times[variant]),
            slower[variant],
            f"{losses[variant]:.6f}",
        ]
        for variant in timed
    ]
    rows.append(
        [labels["all rows"], f"{batch:,}", logits["all rows"] / 1e6, logits["ours"] / logits["all rows"], *"----"]
    )
    rows.append([labels["ours"], f"{large_run:,}", at_large / 1e6, 1.0, *"----"])
    scaled = logits["local rows"] * (large_run / batch) ** 2
    label = f"{labels['local rows']}, by formula"
    rows.append([label, f"{large_run:,}", scaled / 1e6, at_large / scaled, *"----"])
    time_holds = "holds" if slower["local rows"] <= TIME_GOAL else "does not hold"
    print_result(
        Result("contrastive_memory", logits["ours"] / logits["local rows"], f"<= {1 / 32}"),
        f"{WORLD_SIZE} ranks, embeddings of {width}; a step is forward and backward of the loss; times are medians of "
        f"{repeats} rounds",
        ["", "global batch", "logits, MB", "ours / this", "all, MB", "step, s", "ours / this", "loss"],
        rows,
        [f"time: {slower['local rows']:.3g} of the gather's with n x B logits, goal <= {TIME_GOAL}: {time_holds}"],
    )


if __name__ == "__main__":
    main()
