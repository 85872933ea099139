"""How long a step takes: arithmetic, gradients and parameters between nodes, samples from storage; and which of them
limits. All three go on at the same time, so the slowest decides."""

from __future__ import annotations

import math
from dataclasses import dataclass

from astroclip_dist.config import RunConfig
from astroclip_dist.config.engine import DdpEngine, DeepSpeedEngine, FsdpEngine
from astroclip_dist.config.objective import ClipAlignment
from astroclip_dist.models.flops import sample_flops
from astroclip_dist.plan.assumptions import Assumptions
from astroclip_dist.plan.device import Device
from astroclip_dist.plan.lengths import DataSize
from astroclip_dist.train.dry_run.forecast import Layouts


@dataclass(frozen=True)
class StepTime:
    """One step, and what each part of it moves; seconds, where it took all the time that it may.

    Attributes:
        flops: of all GPUs, without what is computed again.
        compute: None where the rate of the device is not known.
        network_bytes: that one node sends to the others, 0 on one node.
        data_bytes: that all nodes read from object storage, mean over the run; 0 from a local disk.
    """

    flops: float
    compute: float | None
    network_bytes: float
    network: float
    data_bytes: float
    data: float

    @property
    def seconds(self) -> float | None:
        return None if self.compute is None else max(self.compute, self.network, self.data)

    @property
    def limit(self) -> str | None:
        """``compute``, ``network`` or ``data``."""
        if self.compute is None:
            return None
        parts = {"compute": self.compute, "network": self.network, "data": self.data}
        return max(parts, key=lambda part: parts[part])


def nodes_of(config: RunConfig, assumptions: Assumptions) -> int:
    return math.ceil(config.workers / assumptions.number("gpus_per_node"))


def step_time(
    config: RunConfig,
    device: Device,
    layouts: Layouts,
    parameters: tuple[int, int],
    size: DataSize,
    read_share: float,
    assumptions: Assumptions,
) -> StepTime:
    """
    Args:
        parameters: numbers that are trained, and that are not.
        read_share: of the samples, those that are read from storage and not from a cache.
    """
    image, spectrum, batch = layouts.image, layouts.spectrum, config.batch.global_size
    of_sample = sample_flops(
        config.objective,
        bands=len(image.bands) if image else 0,
        bins=spectrum.size if spectrum else 0,
        global_batch=batch,
    )
    flops = of_sample.executed * batch
    rate = device.flops and device.flops * assumptions.number("mfu") * config.workers
    nodes = nodes_of(config, assumptions)
    sent = _sent_by_a_node(config, parameters) if nodes > 1 else 0.0
    read = 0.0 if size.is_local else batch * size.sample_bytes * read_share
    return StepTime(
        flops,
        flops / rate if rate else None,
        sent,
        sent / assumptions.number("interconnect") if sent else 0.0,
        read,
        read / nodes / assumptions.number("bandwidth") if read else 0.0,
    )


def _sent_by_a_node(config: RunConfig, parameters: tuple[int, int]) -> float:
    """Bytes of a step over the wire between nodes, each way.

    By rings over all ranks (Patarasu and Yuan 2009), which cross each node's wire once: an all-gather or a
    reduce-scatter of S bytes takes (W - 1) / W of S, an all-reduce twice that.
    """
    trained, kept = parameters
    engine, workers = config.engine, config.workers
    size = 2 if engine.precision == "bf16" else 4
    passes = math.ceil(config.local_batch / config.micro_batch)
    # An alignment in micro-batches embeds all of them before it trains on each.
    again = passes if isinstance(config.objective, ClipAlignment) and passes > 1 else 0
    sent = 0.0
    if isinstance(engine, DdpEngine):
        sent = 2 * 4.0 * trained
    elif isinstance(engine, FsdpEngine):
        # What is kept until backward is not gathered for it; gradients go once a step, in fp32.
        gathers = (1 if not engine.reshard_after_forward else 2) * passes + again
        sent = size * (gathers * trained + (passes + again) * kept) + 4.0 * trained
    elif isinstance(engine, DeepSpeedEngine):
        if engine.zero_stage == 3:
            sent = size * ((2 * passes + again) * trained + (passes + again) * kept)
        else:
            sent = size * trained
        # From stage 2 on, gradients are partitioned after every micro-batch.
        sent += size * trained * (passes if engine.zero_stage >= 2 else 1)
    if isinstance(config.objective, ClipAlignment):
        # Embeddings of both forward, their gradients back, fp32: docs/contrastive-loss.md.
        sent += 4 * 4.0 * config.batch.global_size * config.objective.head.embedding
    return sent * (workers - 1) / workers
