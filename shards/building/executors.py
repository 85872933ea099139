"""Run many like tasks: in this process, by worker processes of this machine, or by those of a Ray cluster."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from astroclip_dist.errors import ConfigError, DataError, UserError
from astroclip_dist.machine_limits import usable_cores

T = TypeVar("T")
R = TypeVar("R")

# Starting Ray takes some seconds: where less is left than this, one process is as fast.
_WORTH_WORKERS_S = 20.0
# Tasks of a worker that are handed over before they can begin, so that none waits.
_AHEAD = 2
# Ray keeps what it passes around in memory of this size: plans and receipts are small.
_OBJECT_STORE_BYTES = 128 << 20
# A cluster that is there answers a connection in this time.
_ANSWER_S = 5.0


@dataclass(frozen=True)
class Workers:
    """Who does the work.

    Attributes:
        count: processes of this machine; 1 is this process; None takes all processors as soon as the first tasks show
            that the rest would take long, so that a small job does not wait for them to start.
        ray_address: a running Ray cluster instead: ``auto`` or ``HOST:PORT``.

    Raises:
        ConfigError: fewer than one, or both given.
    """

    count: int | None = None
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ConfigError("--workers", self.count, "Use at least one.")
        if self.count is not None and self.ray_address is not None:
            raise ConfigError(
                "--workers", self.count, "Leave it out: with --ray-address the cluster says how many there are."
            )

    def run(self, task: Callable[[T], R], items: Iterable[T], total: int) -> Generator[R]:
        """What the task makes of each item, in the order in which they are finished.

        Items are taken one by one, a few more than there are workers. Stopping early stops the workers.

        Args:
            task, items: can be pickled.
            total: how many items there are.

        Raises:
            UserError: of a task.
            DataError: a worker died at the same item again and again.
        """
        waiting = iter(items)
        if self.ray_address is not None or (self.count or 1) > 1:
            yield from _run_on_ray(task, waiting, self.count, self.ray_address)
            return
        processors = int(usable_cores())
        began = time.monotonic()
        for done, item in enumerate(waiting, 1):
            yield task(item)
            left = (time.monotonic() - began) / done * (total - done)
            if self.count is None and processors > 1 and total - done > 1 and left > _WORTH_WORKERS_S:
                yield from _run_on_ray(task, waiting, min(processors, total - done), None)


def _run_on_ray(task: Callable[[T], R], items: Iterator[T], workers: int | None, address: str | None) -> Generator[R]:
    import ray

    with _connected(workers, address):
        shared = ray.put(task)
        # A worker that dies (out of memory, a lost node) is replaced three times before the task counts as failed.
        remote: Any = ray.remote(num_cpus=1, max_retries=3)(_attempt)
        running: dict[Any, T] = {}
        try:
            while True:
                # Asked again and again, because a cluster may grow.
                room = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
                while len(running) < room and (item := next(items, None)) is not None:
                    running[remote.remote(shared, item)] = item
                if not running:
                    return
                (finished,), _ = ray.wait(list(running), num_returns=1)
                item = running.pop(finished)
                yield _outcome(finished, item)
        finally:
            for waiting in running:
                ray.cancel(waiting, force=True)


def _attempt(task: Callable[[T], R], item: T) -> R | UserError:
    """The task's outcome; errors of the user come as values, because Ray would change their class."""
    try:
        return task(item)
    except UserError as error:
        return error


def _outcome(finished: Any, item: object) -> Any:
    import ray

    try:
        outcome = ray.get(finished)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError) as error:
        raise DataError(
            f"worker at {getattr(item, 'name', item)}",
            f"died again and again ({type(error).__name__})",
            "It may need more memory: use fewer --workers or smaller --samples-per-shard.",
        ) from error
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


@contextmanager
def _connected(workers: int | None, address: str | None) -> Iterator[None]:
    """A connection to a cluster, or a Ray of this machine alone, on loopback, that ends with the work."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    local: dict[str, Any] = {
        "num_cpus": workers,
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
        "object_store_memory": _OBJECT_STORE_BYTES,
    }
    try:
        if address not in (None, "auto"):
            # Ray itself asks for minutes.
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
        ray.init(address=address or "local", logging_level=logging.ERROR, **({} if address else local))
    except (OSError, ValueError) as error:
        raise ConfigError("--ray-address", address, f"No Ray cluster there: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()
