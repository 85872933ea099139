"""Callbacks of Ray Train's controller; apart from the launcher, which imports Ray only when it is chosen."""

from __future__ import annotations

import logging
import time
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.train import UserCallback
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import RestartingState
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from astroclip_dist.errors import UserError
from astroclip_dist.store import Store
from astroclip_dist.train.event_log import EventLog
from astroclip_dist.train.failure import OtherRankError

# The other ranks hear of the error and write down why they stop; afterwards Ray ends them.
_FAREWELL_S = 5.0
_CAUSE_CHARACTERS = 300
log = logging.getLogger(__name__)


class StopOnUserError(UserCallback):
    """Ends the run at an error that no restart mends; any other costs one of the run's restarts."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises the first such error; Ray gives up when a callback fails."""
        for error in worker_exceptions.values():
            cause = error.cause if isinstance(error, OtherRankError) else error
            if isinstance(cause, UserError):
                time.sleep(_FAREWELL_S)
                raise cause


class RestartRecord(ControllerCallback, WorkerGroupCallback):
    """Writes ``restarting`` into the run's events, once the workers that failed are gone and others start."""

    def __init__(self, run_url: str) -> None:
        self._run_url = run_url
        self._cause: str | None = None

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if isinstance(current_state, RestartingState):
            self._cause = cause_in_words(current_state.training_failed_error)

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        if self._cause:
            write_restart(self._run_url, self._cause, worker_group_context.num_workers)
            self._cause = None


def write_restart(run_url: str, cause: str, workers: int | None = None) -> None:
    """One event, written when this returns; storage that does not answer now does not end the run."""
    log.error("restarting: %s", cause)
    with EventLog(Store(run_url)) as events:
        events.write("restarting", cause=cause, **({"world_size": workers} if workers else {}))


def cause_in_words(error: BaseException) -> str:
    """The rank and the first line of the error that stopped the workers, or what failed in place of them."""
    if isinstance(error, WorkerGroupError):
        failures = sorted(error.worker_failures.items())
        # The rank that failed, rather than those that stopped with it.
        first_hand = [entry for entry in failures if not isinstance(entry[1], OtherRankError)]
        rank, failure = (first_hand or failures)[0]
        if isinstance(failure, WorkerHealthCheckFailedError):
            failure = failure.health_check_failure
        if isinstance(failure, RayActorError):
            return f"rank {rank}: its process died (killed, out of memory, or its node is gone)"
        if isinstance(failure, OtherRankError):
            return f"rank {rank} stopped: {failure}"[:_CAUSE_CHARACTERS]
        return f"rank {rank}: {_first_line(failure)}"
    if isinstance(error, ControllerError):
        return f"the workers could not be started: {_first_line(error.controller_failure)}"
    if isinstance(error, RayActorError):
        return "the controller of the workers died"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line}"[:_CAUSE_CHARACTERS]
