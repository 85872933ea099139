"""How much of a device a run uses: the peak rates of devices, and the memory that was held."""

from __future__ import annotations

import resource
import sys

import torch

from astroclip_dist.config.engine import Precision

# Dense FLOP/s without sparsity, in bf16 on tensor cores and in fp32 (no TF32), by the device's name in CUDA; of names
# that contain one another the longer stands first. As NVIDIA's data sheets state them, to our knowledge: not measured.
_PEAKS: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250e12, 75e12),
    ("GH200", 989.4e12, 66.9e12),
    ("H200 NVL", 835.5e12, 60.0e12),
    ("H200", 989.4e12, 66.9e12),
    ("H100 NVL", 835.5e12, 60.0e12),
    ("H100 PCIe", 756.4e12, 51.2e12),
    ("H100", 989.4e12, 66.9e12),
    ("A100", 312.0e12, 19.5e12),
    ("L40S", 362.05e12, 91.6e12),
    ("A40", 149.7e12, 37.4e12),
    ("A10", 125.0e12, 31.2e12),
)


def peak_flops(device_name: str, precision: Precision) -> float | None:
    """FLOP/s that a device can do in a precision, None for one that is not known.

    Args:
        device_name: as ``torch.cuda.get_device_name`` gives it.
    """
    words = f"{device_name.replace('-', ' ')} "
    for name, bf16, fp32 in _PEAKS:
        if f" {name} " in f" {words}":
            return bf16 if precision == "bf16" else fp32
    return None


def device_peak(device: torch.device, precision: Precision) -> float | None:
    """As ``peak_flops``. A CPU has none: its rate depends on clock, cores lent and neighbours."""
    return peak_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def peak_memory(device: torch.device) -> int:
    """Bytes: on CUDA the most that tensors held since the last call, on a CPU the most that the process ever had."""
    if device.type == "cuda":
        held = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return held
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else 1024 * resident
