"""Peak memory that a dry run predicts, against that of real runs on 2 and 4 processes: the largest relative error.

The dry run lays the model over fake ranks and steps on tensors without memory. The real runs take the same steps over
gloo, on the CPU, and torch's profiler sees every allocation from before the model is built to the end of the last step:
the peak of that step, on the rank with the highest, is what is compared. What gloo copies for itself is left out: that
is transport, and NCCL's own buffers are not predicted either. Memory is the same in every run.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from astroclip_dist.config import RunConfig, parse_config
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.objectives import Setting, objective_of
from astroclip_dist.parallel.engines import StepRates, build_engine
from astroclip_dist.parallel.process_group import Ranks
from astroclip_dist.train.dry_run.forecast import Layouts, forecast
from astroclip_dist.train.dry_run.inputs import batch_like, mapped
from tests.benchmarks.result import Result, Size, print_result, size_asked_for
from tests.rank_pool import RankPool

STEPS = 3
ENGINES = {"ddp": "{name: ddp}", "fsdp": "{name: fsdp}"}
ALL = ("clip", "dinov2", "masked_spectrum")
# width and depth of the encoders, samples of a rank, world sizes, objectives
SIZES: dict[Size, tuple[int, int, int, tuple[int, ...], tuple[str, ...]]] = {
    "small": (48, 2, 8, (2,), ("masked_spectrum",)),
    "default": (192, 6, 16, (2, 4), ALL),
    "large": (384, 12, 16, (2, 4), ALL),
}
IMAGE, SPECTRUM = ImageLayout(size=80), SpectrumLayout(size=1600)


def configuration(objective: str, engine: str, size: Size, workers: int) -> RunConfig:
    width, depth, batch, _, _ = SIZES[size]
    image = f"{{crop: 72, patch: 12, width: {width}, depth: {depth}, heads: 6}}"
    spectrum = f"{{slice_size: 20, slice_stride: 10, width: {width}, depth: {depth}, heads: 6}}"
    objectives = {
        "clip": f"{{name: clip, image: {image}, spectrum: {spectrum}, head: {{embedding: 64}}}}",
        "dinov2": f"{{name: dinov2, image: {image}, global_views: {{count: 2, size: 72}}, drop_path: 0.2, "
        f"local_views: {{count: 4, size: 36}}, head: {{hidden: 256, bottleneck: 64, prototypes: 4096}}}}",
        "masked_spectrum": f"{{name: masked_spectrum, spectrum: {spectrum}, masks: 4, mask_width: 10}}",
    }
    return parse_config(
        f"data: unused\nrun: unused\ndevice: cpu\nlength: {STEPS} steps\nworkers: {workers}\n"
        f"batch: {{global_size: {batch * workers}, micro_size: {batch // 2}, lanes: {2 * workers}}}\n"
        f"engine: {ENGINES[engine]}\nobjective: {objectives[objective]}\noptimizer: {{lr: 1e-4}}\n",
        "dry_run_memory",
    )


def real_peak(config: RunConfig) -> int:
    """On a rank: the most bytes that tensors held during the last of some steps."""
    rank = dist.get_rank()
    ranks = Ranks(rank, dist.get_world_size(), rank, torch.device("cpu"), made_group=False)
    steps = RunSteps(STEPS, STEPS, config.batch.global_size)
    setting = Setting(config, IMAGE, SPECTRUM, True, steps, ranks.device)
    objective = objective_of(setting)
    prepared = objective.prepare(batch_like(IMAGE, SPECTRUM, objective.members, config.local_batch))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        objective = objective_of(setting)
        engine = build_engine(config, ranks, objective.build())
        engine.train()
        inputs = mapped(prepared, torch.clone)
        for step in range(STEPS):
            with torch.profiler.record_function(f"step {step}"):
                objective.accumulate(engine, inputs, step)
                engine.step(StepRates(1e-4, 0.0))
                objective.after_step(engine, step)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        return _peak(json.loads(path.read_text())["traceEvents"], f"step {STEPS - 1}")


def _peak(events: list[dict[str, Any]], within: str) -> int:
    """Without the copies that gloo makes within its collectives, which NCCL does not."""
    (window,) = [event for event in events if event.get("name") == within and event.get("cat") == "user_annotation"]
    collectives = [event for event in events if str(event.get("name")).startswith("c10d::") and "dur" in event]
    changes = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    held = most = 0
    copies: set[int] = set()
    for event in changes:
        change, address = event["args"]["Bytes"], event["args"]["Addr"]
        if change > 0:
            # What gloo's own threads free is not told; the address is then given out again.
            copies.discard(address)
        if change > 0 and any(_during(event, collective) for collective in collectives):
            copies.add(address)
        elif change < 0 and address in copies:
            copies.remove(address)
        else:
            held += change
            if window["ts"] <= event["ts"] <= window["ts"] + window["dur"]:
                most = max(most, held)
    return most


def _during(event: dict[str, Any], collective: dict[str, Any]) -> bool:
    return event["tid"] == collective["tid"] and collective["ts"] <= event["ts"] <= collective["ts"] + collective["dur"]


def main() -> None:
    size = size_asked_for(__doc__)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own lines, on every rank
    layouts = Layouts(IMAGE, SPECTRUM, True, "measure")
    rows: list[list[object]] = []
    errors: list[float] = []
    width, depth, batch, world_sizes, objectives = SIZES[size]
    for workers in world_sizes:
        ranks = RankPool(workers)
        try:
            for objective, engine in itertools.product(objectives, ENGINES):
                config = configuration(objective, engine, size, workers)
                real = max(ranks.run(real_peak, config))
                predicted = forecast(config, layouts).total
                errors.append(predicted / real - 1)
                rows.append(
                    [f"{objective}, {engine}, {workers} ranks", predicted / 1e6, real / 1e6, f"{errors[-1]:+.2%}"]
                )
        finally:
            ranks.close()
    print_result(
        Result("dry_run_memory", max(abs(error) for error in errors), "<= 0.1"),
        f"encoders {width} wide, {depth} deep, fp32, {batch} samples a rank in micro-batches of {batch // 2}; peak of "
        f"step {STEPS}, MB",
        ["", "predicted", "real", "error"],
        rows,
    )


if __name__ == "__main__":
    main()
