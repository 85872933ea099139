"""The metrics of a run through Ray, whose agent on each node answers Prometheus for all processes of the node.

Ray forgets a gauge some 20 s after it was last set, and remembers a counter for as long as the node's agent lives. So
gauges are set again and again, and moments (the last step, the end) are counters that grow to what the clock says:
what an alert rests on is there even when the process that it is about is not.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from astroclip_dist.train.metrics import METRICS, RUN_LABEL, RunMetrics


class RayExporter:
    """Hands values over to Ray; must be made in a process that is connected to a cluster."""

    def __init__(self, metrics: RunMetrics) -> None:
        self._metrics = metrics
        self._told: dict[tuple[str, tuple[str, ...]], float] = {}
        self._instruments: dict[str, Counter | Gauge] = {
            name: (Gauge if metric.kind == "gauge" else Counter)(name, metric.help, (RUN_LABEL, *metric.labels))
            for name, metric in METRICS.items()
        }

    def push(self) -> None:
        """All values as they are now; called by one thread at a time."""
        for metric, labels, value in self._metrics.read():
            instrument = self._instruments[metric.name]
            tags = dict(zip((RUN_LABEL, *metric.labels), (self._metrics.run, *labels), strict=True))
            if isinstance(instrument, Gauge):
                instrument.set(value, tags)
            elif (grown := value - self._told.get((metric.name, labels), 0.0)) > 0:
                instrument.inc(grown, tags)
                self._told[metric.name, labels] = value
