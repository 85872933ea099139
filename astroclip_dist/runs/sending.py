"""What a run could not tell MLflow, told after its end: its records, and that it has ended."""

from __future__ import annotations

import logging

from astroclip_dist.config import RunConfig
from astroclip_dist.runs.summary import events_of
from astroclip_dist.store import Store
from astroclip_dist.train.health.bounded import bounded
from astroclip_dist.train.holding import hold, stop_at_once
from astroclip_dist.train.run_folder import read_run_config
from astroclip_dist.train.tracking import send_unsent

_PATIENCE_S = 30.0
log = logging.getLogger(__name__)


def send_unsent_of_run(url: str, tracking_uri: str | None) -> tuple[int, str | None]:
    """Send what lies in a run folder: records in order, each once, then the status that the run ended with.

    Args:
        tracking_uri: instead of the run's own.

    Returns:
        How many batches were sent, and what a run that was killed was ended as in MLflow (None: MLflow knew it).

    Raises:
        ConfigError: no run there, or MLflow refuses.
        HeldError: the run goes on, and sends its records itself.
        StorageError: MLflow does not answer, or the run folder does not; what was not sent stays.
    """
    run = Store(url)
    config = read_run_config(run)
    with hold(run, "runs sync", stop_at_once):
        return _send(run, config, tracking_uri or config.tracking_uri())


def end_tracking(run: Store, config: RunConfig) -> None:
    """Tell MLflow of the end of a run that failed, unless its first rank has: it may have been killed.

    The caller holds the run. Waits for MLflow half a minute at most, and never fails.
    """
    try:
        events = events_of(run)
        # The first rank's last word says in which phase it was.
        if events and "phase" in events[-1]:
            return
        bounded(lambda: _send(run, config, config.tracking_uri()), _PATIENCE_S)
    except Exception as error:  # why the run has failed is what its launcher is to say
        log.warning("MLflow may still have the run as running (%s); later: astroclip runs sync %s", error, run.url)


def _send(run: Store, config: RunConfig, tracking_uri: str) -> tuple[int, str | None]:
    return send_unsent(run, tracking_uri, config.tracking.experiment, run.url.rpartition("/")[2])
