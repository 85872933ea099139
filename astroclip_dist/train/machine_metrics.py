"""What the machine of a run does: CPU, memory, disk, network and GPUs, by MLflow's own collectors and names."""

from __future__ import annotations

from contextlib import suppress

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor


class MachineMetrics:
    """Samples this machine. (MLflow's ``SystemMetricsMonitor`` gives up for good when its server is away once.)"""

    def __init__(self) -> None:
        self._monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        # Without an NVIDIA GPU, or without nvidia-ml-py, there is nothing of it to collect.
        with suppress(ImportError, RuntimeError):
            self._monitors.append(GPUMonitor())
        # Utilisations are means since the sample before: the first one only sets the clock.
        self.sample()

    def sample(self) -> dict[str, float]:
        """``system/NAME`` -> value since the last sample, in the unit that the name ends with."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.clear_metrics()
            monitor.collect_metrics()
            values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        return values
