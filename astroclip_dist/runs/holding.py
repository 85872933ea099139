"""A run held while something in its folder changes, so that no training starts or goes on meanwhile."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from astroclip_dist.store import Store
from launchers.holder import HeldError
from launchers.holding import hold

log = logging.getLogger(__name__)


@contextmanager
def held(run: Store, command: str) -> Iterator[None]:
    """Be the one process that changes the run.

    Raises:
        HeldError: another one runs it.
        StorageError
    """
    with hold(run, command, _stop_at_once):
        yield


def _stop_at_once(error: HeldError) -> None:
    log.error("error: %s", error)
    os._exit(error.exit_code)
