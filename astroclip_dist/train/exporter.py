"""The metrics of a run over HTTP, from its first rank, and the file that tells Prometheus where that is."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import socket
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from astroclip_dist.config.run import Metrics
from astroclip_dist.errors import ConfigError
from astroclip_dist.train.metrics import METRICS, RUN_LABEL, RunMetrics

log = logging.getLogger(__name__)
Family = CounterMetricFamily | GaugeMetricFamily


class HttpExporter:
    """Answers ``GET /metrics`` in threads of its own; nothing is computed but when somebody asks.

    Raises:
        ConfigError: the port cannot be had, or the folder of targets cannot be written.
    """

    def __init__(self, metrics: RunMetrics, config: Metrics) -> None:
        assert config.port is not None
        registry = CollectorRegistry()
        registry.register(_Values(metrics))
        self._server: WSGIServer
        try:
            self._server, self._thread = start_http_server(config.port, config.address, registry)
        except OSError as error:
            raise ConfigError(
                "metrics.port",
                f"{config.address}:{config.port}",
                f"It cannot be listened on ({error.strerror}): choose another, or 0 for any free one.",
            ) from error
        self.port: int = self._server.server_port
        self.url = f"http://{_reachable(config.address)}:{self.port}/metrics"
        self._target: Path | None = None
        if config.targets_folder is not None:
            try:
                self._target = self._announce(metrics.run, config.address, Path(config.targets_folder))
            except OSError as error:
                self.close(over=False)
                raise ConfigError("metrics.targets_folder", config.targets_folder, f"{error.strerror}.") from error

    def close(self, *, over: bool) -> None:
        """Answer no more.

        Args:
            over: the run has ended with a word. Else its target stays, and Prometheus sees that nobody answers there.
        """
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if over and self._target is not None:
            _remove(self._target, self._announced)

    def _announce(self, run: str, address: str, folder: Path) -> Path:
        """One file a run, which another attempt on another node replaces."""
        self._announced = json.dumps([{"targets": [f"{_reachable(address)}:{self.port}"], "labels": {RUN_LABEL: run}}])
        target = _target(run, folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Of another ending than .json, which Prometheus would read.
        aside = target.with_suffix(f".{socket.gethostname()}-{self.port}.new")
        aside.write_text(self._announced)
        return aside.replace(target)


def forget_target(run: str, targets_folder: str) -> None:
    """Take away the target of a run that has left although its first rank did not come to say so: it was killed.

    Args:
        run: URL of the run folder; the caller holds the run.
    """
    _remove(_target(run, Path(targets_folder)))


def _target(run: str, folder: Path) -> Path:
    return folder / f"{run.rsplit('/', 1)[-1]}-{hashlib.sha256(run.encode()).hexdigest()[:8]}.json"


def _remove(target: Path, content: str | None = None) -> None:
    """A target's file, if it has this content; the run is over all the same if that fails."""
    try:
        if content is None or target.read_text() == content:
            target.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        log.error("%s stays, and with it an alert: %s", target, error.strerror)


class _Values(Collector):
    def __init__(self, metrics: RunMetrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Family]:
        return ()

    def collect(self) -> Iterator[Family]:
        for name, values in groupby(self._metrics.read(), lambda value: value.metric.name):
            metric = METRICS[name]
            labels = (RUN_LABEL, *metric.labels)
            family: Family
            if metric.kind == "counter":
                family = CounterMetricFamily(name, metric.help, labels=labels)
            else:
                family = GaugeMetricFamily(name, metric.help, labels=labels)
            for value in values:
                family.add_metric((self._metrics.run, *value.labels), value.value)
            yield family


def _reachable(address: str) -> str:
    """By which Prometheus reaches what listens on an address: this machine's name, where it listens on all."""
    ip = ipaddress.ip_address(address)
    if ip.is_unspecified:
        return socket.gethostname()
    return f"[{ip}]" if ip.version == 6 else str(ip)
