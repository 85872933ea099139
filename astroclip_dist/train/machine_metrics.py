"""What the machine of a run does: CPU, memory, disk, network and GPUs, by MLflow's own collectors and names."""

from __future__ import annotations

import logging

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

log = logging.getLogger(__name__)


class MachineMetrics:
    """Samples this machine. (MLflow's ``SystemMetricsMonitor`` gives up for good when its server is away once.)

    What a driver or the kernel refuses is left out, whatever they raise: the caller has more to do than this.
    """

    def __init__(self) -> None:
        self._monitors: list[BaseMetricsMonitor] = []
        self._failing: set[str] = set()
        for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
            try:
                self._monitors.append(kind())
            except Exception as error:
                # As without an NVIDIA GPU, without nvidia-ml-py, with devices that this job may not see.
                log.debug("%s: nothing to collect: %s", kind.__name__, error)
        # Utilisations are means since the sample before: the first one only sets the clock.
        self.sample()

    def sample(self) -> dict[str, float]:
        """``system/NAME`` -> value since the last sample, in the unit that the name ends with."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            name = type(monitor).__name__
            try:
                monitor.clear_metrics()
                monitor.collect_metrics()
                values |= {f"system/{key}": float(value) for key, value in monitor.aggregate_metrics().items()}
            except Exception as error:
                if name not in self._failing:
                    log.warning("metrics of this machine are incomplete: %s: %s", name, error)
                self._failing.add(name)
        return values
