"""The device that a run is planned for."""

from __future__ import annotations

import os
from dataclasses import dataclass

from astroclip_dist.config import RunConfig
from astroclip_dist.errors import ConfigError
from astroclip_dist.plan.assumptions import Assumptions
from astroclip_dist.train.throughput import peak_flops

# Bytes, as the makers state them; CUDA shows a few per cent more or less.
_MEMORY = {
    "B200": 180e9,
    "GH200": 96e9,
    "H200": 141e9,
    "H200 NVL": 141e9,
    "H100": 80e9,
    "H100 NVL": 94e9,
    "H100 PCIe": 80e9,
    "A100": 80e9,
    "A100 40GB": 40e9,
    "L40S": 48e9,
    "A40": 48e9,
    "A10": 24e9,
}
_ASSUMED = "H100"


@dataclass(frozen=True)
class Device:
    """One GPU, or what a rank has of CPUs: bytes of its memory, FLOP/s of its peak in the run's precision, if known."""

    name: str
    memory: float
    flops: float | None


def device_of(config: RunConfig, gpu: str | None, assumptions: Assumptions) -> Device:
    """A GPU by its name, or by its numbers, which count more than its name. A run on CPUs has a part of this machine.

    Raises:
        ConfigError: a name that is not known, or a GPU for a run on CPUs.
    """
    memory, flops = assumptions.given("device_memory"), assumptions.given("device_flops")
    if config.device == "cpu":
        if gpu is not None:
            raise ConfigError("--gpu", gpu, "The run has device: cpu.")
        return Device("CPU", memory or _part_of_this_machine(config, assumptions), flops)
    if gpu is not None and gpu not in _MEMORY:
        raise ConfigError("--gpu", gpu, f"Known are {', '.join(_MEMORY)}; of others give the memory and FLOP/s alone.")
    if gpu is None and memory is not None and flops is not None:
        return Device("GPU", memory, flops)
    name = gpu or _ASSUMED
    assumptions.add("the GPU", name, "--gpu" if gpu else "assumed: --gpu")
    if flops is None and (flops := peak_flops(name, config.engine.precision)) is not None:
        source = "its maker's, without sparsity; --device-flops"
        assumptions.add(f"peak of a GPU in {config.engine.precision}", f"{flops / 1e12:.4g} TFLOP/s", source)
    return Device(name, memory or _MEMORY[name], flops)


def _part_of_this_machine(config: RunConfig, assumptions: Assumptions) -> float:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    share = whole / min(config.workers, assumptions.number("gpus_per_node"))
    assumptions.add("memory of a rank", f"{share / 1e9:.1f} GB", "assumed: its part of this machine's; --device-memory")
    return share
