"""What a run reads from storage and writes to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from astroclip_dist.config import RunConfig
from astroclip_dist.config.engine import FsdpEngine
from astroclip_dist.config.run import Checkpoint
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.objectives import Setting, objective_of
from astroclip_dist.parallel.engines.base import MOMENTS
from astroclip_dist.plan.lengths import DataSize
from astroclip_dist.train.dry_run.forecast import Layouts

# Of each part of a tensor, beside its name: in the header of the file it lies in, and in the manifest.
_PART_BYTES = 66 + 123
# Of each tensor in the manifest, beside its name.
_TENSOR_BYTES = 50


@dataclass(frozen=True)
class Saves:
    """The checkpoints of a run.

    Attributes:
        bytes: of one.
        count: that are written, if nothing goes wrong.
        kept: that are there at the end.
        weights_bytes: of the weights file that is written once, at the end.
        every: steps between two.
    """

    bytes: int
    count: int
    kept: int
    weights_bytes: int
    every: float

    @property
    def written(self) -> int:
        return self.bytes * self.count + self.weights_bytes

    @property
    def left(self) -> int:
        return self.bytes * self.kept + self.weights_bytes


@dataclass(frozen=True)
class Reads:
    """What a run fetches from object storage, and of that the bytes that leave it.

    Attributes:
        bytes: in all, over all nodes.
        share: of the bytes that batches are made of; the rest came from a cache.
    """

    bytes: float
    share: float


def members_of(config: RunConfig, layouts: Layouts) -> tuple[str, ...]:
    """What the objective reads of a sample.

    Raises:
        ConfigError, DataError: what the training itself would refuse.
    """
    return tuple(objective_of(_setting(config, layouts)).members)


def saves_of(config: RunConfig, layouts: Layouts, steps: RunSteps, step_seconds: float | None) -> Saves:
    """The checkpoints of a run, from the tensors of its state.

    Args:
        step_seconds: for ``checkpoint.interval``; None: not known, and it does not count.
    """
    checkpoint, weights = _state_bytes(config, layouts)
    every = float(steps.of(config.checkpoint.every))
    if config.checkpoint.interval is not None and step_seconds:
        every = min(every, max(1.0, config.checkpoint.interval / step_seconds))
    count, kept = saved_and_kept(config.checkpoint, steps, every)
    return Saves(checkpoint, count, kept, weights, every)


def saved_and_kept(config: Checkpoint, steps: RunSteps, every: float) -> tuple[int, int]:
    """How many checkpoints a run writes, one after every so many steps, and how many of them it keeps at most."""
    at = sorted({*(round(number * every) for number in range(1, int(steps.total / every) + 1)), steps.total})
    kept = set(at[-config.keep_last :])
    if period := steps.of(config.keep_every):
        kept |= {step for step in at if step % period == 0}
    # The best may be among those that are kept anyway.
    return len(at), min(len(at), len(kept) + config.keep_best)


def reads_of(config: RunConfig, steps: RunSteps, size: DataSize, nodes: int) -> Reads:
    """What comes from storage: every sample whenever it is used or, with a cache, unless its node has its shard.

    Shards are dealt anew to lanes in each epoch: of what a node reads, a share as large as its cache's of the data is
    there already (for a cache smaller than the data that flatters a little: what was used longest ago goes first).
    """
    if size.is_local:
        return Reads(0.0, 0.0)
    used = steps.total * steps.global_batch * size.sample_bytes
    if config.reading.cache is None:
        return Reads(used, 1.0)
    limit, rest, fetched, held = float(config.reading.cache.limit), used / nodes, 0.0, 0.0
    while rest > 0:
        epoch = min(rest, size.bytes / nodes)
        new = epoch * (1 - held / size.bytes)
        held, fetched, rest = min(held + new, limit, size.bytes), fetched + new, rest - epoch
    return Reads(nodes * fetched, nodes * fetched / used)


def _state_bytes(config: RunConfig, layouts: Layouts) -> tuple[int, int]:
    """Of a checkpoint, and of the weights alone."""
    objective = objective_of(_setting(config, layouts))
    module = objective.build()
    sizes: dict[str, tuple[int, bool]] = {}
    for name, tensor in module.state_dict().items():
        # Weights are saved in fp32 whatever they compute in.
        sizes[f"model.{name}"] = 4 * tensor.numel() if tensor.is_floating_point() else tensor.nbytes, tensor.ndim > 0
    weights = sum(size for size, _ in sizes.values())
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            for moment in MOMENTS:
                sizes[f"optimizer.{name}.{moment}"] = 4 * parameter.numel(), parameter.ndim > 0
            sizes[f"optimizer.{name}.step"] = 4, False
    for name, tensor in objective.state().items():
        sizes[f"objective.{name}"] = tensor.nbytes, False
    sharded = isinstance(config.engine, FsdpEngine)
    total = 0
    for name, (size, splits) in sizes.items():
        parts = config.workers if sharded and splits else 1
        total += size + len(name) + _TENSOR_BYTES + parts * (len(name) + _PART_BYTES)
    return total, weights


def _setting(config: RunConfig, layouts: Layouts) -> Setting:
    steps = RunSteps(1, 1, config.batch.global_size)
    return Setting(config, layouts.image, layouts.spectrum, layouts.has_ivar, steps, torch.device("cpu"))
