"""Launchers by name: what starts the workers of a run."""

from __future__ import annotations

import logging
from typing import Protocol

from astroclip_dist.config import RunConfig
from astroclip_dist.data.dataset import Dataset
from astroclip_dist.data.mixture import order_of
from astroclip_dist.store import Store
from astroclip_dist.train.run_folder import is_finished, register, withdraw

log = logging.getLogger(__name__)


class Launcher(Protocol):
    """Adapter to one engine that starts processes."""

    def run(self, config: RunConfig) -> int:
        """Train a registered run to its end, and give the command's exit code."""


def launch(config: RunConfig) -> int:
    """Check what can be checked before anything starts, register the run, and start it.

    Raises:
        UserError: configuration, data or storage.
    """
    dataset = Dataset.open(config.data_urls, ["train"], config.data_weights)
    batch = config.batch
    order_of(
        dataset,
        seed=config.seed,
        lanes=batch.lanes,
        global_batch=batch.global_size,
        window_shards=batch.window_shards,
    )
    config.tracking_uri()
    run = Store(config.run)
    run.check()
    if register(run, config):
        if is_finished(run):
            log.info("%s is finished: nothing to do", run.url)
            return 0
        return _launcher(config.launcher).run(config)
    try:
        return _launcher(config.launcher).run(config)
    finally:
        withdraw(run)


def _launcher(name: str) -> Launcher:
    # Imported when chosen: Ray costs seconds.
    if name == "ray":
        from launchers.ray import RayLauncher

        return RayLauncher()
    from launchers.local import LocalLauncher

    return LocalLauncher()
