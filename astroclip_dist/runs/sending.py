"""Records that a run could not send to MLflow, sent after its end."""

from __future__ import annotations

from astroclip_dist.store import Store
from astroclip_dist.train.holding import hold, stop_at_once
from astroclip_dist.train.run_folder import read_run_config
from astroclip_dist.train.tracking import send_unsent


def send_unsent_of_run(url: str, tracking_uri: str | None) -> int:
    """Send what lies in a run folder: records in order, each once, then the status that the run ended with.

    Args:
        tracking_uri: instead of the run's own.

    Returns:
        How many batches were sent.

    Raises:
        ConfigError: no run there, or MLflow refuses.
        HeldError: the run goes on, and sends its records itself.
        StorageError: MLflow does not answer, or the run folder does not; what was not sent stays.
    """
    run = Store(url)
    config = read_run_config(run)
    with hold(run, "runs sync", stop_at_once):
        return send_unsent(
            run, tracking_uri or config.tracking_uri(), config.tracking.experiment, run.url.rpartition("/")[2]
        )
