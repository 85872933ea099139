"""Callbacks of Ray Train's controller; apart from the launcher, which imports Ray only when it is chosen."""

from __future__ import annotations

import time
from typing import Any

from ray.train import UserCallback

from astroclip_dist.errors import UserError
from astroclip_dist.train.failure import OtherRankError

# The other ranks hear of the error and write down why they stop; afterwards Ray ends them.
_FAREWELL_S = 5.0


class StopOnUserError(UserCallback):
    """Ends the run at an error that no restart mends; any other costs one of the run's restarts."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises the first such error; Ray gives up when a callback fails."""
        for error in worker_exceptions.values():
            cause = error.cause if isinstance(error, OtherRankError) else error
            if isinstance(cause, UserError):
                time.sleep(_FAREWELL_S)
                raise cause
