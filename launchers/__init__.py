"""How a run's workers are started where its command runs; ``launchers.jobs`` hands that command to a queue."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from astroclip_dist.errors import ConfigError

if TYPE_CHECKING:
    from astroclip_dist.config import RunConfig

log = logging.getLogger(__name__)


class Workers(Protocol):
    """Adapter to one engine that starts the workers of a run, and restarts them."""

    def run(self, config: RunConfig) -> int:
        """Train a registered run, which this process holds, to its end or until this process is asked to leave.

        Without this process its workers end, too, however it dies.

        Returns:
            The command's exit code: 0 done, 1 failed, 2 wrong configuration, 75 left to be started again, 130 left
            because of Ctrl-C.

        Raises:
            UserError: of a worker; a restart would not mend it.
        """


def launch(config: RunConfig) -> int:
    """Check what can be checked before anything starts, register the run, and start it.

    Raises:
        HeldError: another process runs this run.
        UserError: configuration, data or storage.
    """
    # Imported here: the processes that keep watch over this machine's jobs import this package, one a job, and stay
    # small.
    from astroclip_dist.data.ordering.mixture import order_of
    from astroclip_dist.data.stored.dataset import Dataset
    from astroclip_dist.runs.sending import end_tracking
    from astroclip_dist.store import Store
    from astroclip_dist.train.holding import hold, stop_at_once
    from astroclip_dist.train.run_folder import is_finished, register, withdraw
    from launchers.exit_codes import PREEMPTED
    from launchers.leaving import INTERRUPTED

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
    if run.url in config.data_urls:
        raise ConfigError("run", run.url, "That is the dataset; choose another folder for the run.")
    run.check()
    with hold(run, config.launcher, stop_at_once):
        existed = register(run, config)
        if existed and is_finished(run):
            log.info("%s is finished: nothing to do", run.url)
            return 0
        try:
            code = _workers(config.launcher).run(config)
        finally:
            if not existed:
                withdraw(run)
        if code == 1:
            end_tracking(run, config)
        elif code in (PREEMPTED, INTERRUPTED) and config.metrics.targets_folder is not None:
            # Imported here: few runs need it, and none to begin.
            from astroclip_dist.train.exporter import forget_target

            forget_target(run.url, config.metrics.targets_folder)
        return code


def _workers(name: str) -> Workers:
    # Imported when chosen: Ray costs seconds.
    if name == "ray":
        from launchers.ray.workers import RayWorkers

        return RayWorkers()
    from launchers.local.workers import LocalWorkers

    return LocalWorkers()
