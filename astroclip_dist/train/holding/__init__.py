"""Who holds a run: two launchers that start the same run at once would write the same checkpoints.

On a file system of this machine the kernel keeps the hold and lets go of it when its process dies, however it dies
(``lock_file``). On object storage it is a lease that its holder renews (``lease``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from astroclip_dist.store import MissingObjectError, Store
from astroclip_dist.train.holding.holder import HeldError, Holder
from astroclip_dist.train.holding.lease import Lease, LeaseContent
from astroclip_dist.train.holding.lock_file import LockedError, hold_lock_file, read_lock_file

HOLDER_FILE = "holder.json"
# Many renewals: the storage's clock and this machine's may differ by minutes. Who takes a lease compares no clocks.
GONE_AFTER = timedelta(minutes=10)
log = logging.getLogger(__name__)


def stop_at_once(error: HeldError) -> None:
    """For ``hold``: the run is somebody else's now, and nothing more may be written: neither saved nor tidied up."""
    log.error("error: %s", error)
    os._exit(error.exit_code)


@contextmanager
def hold(run: Store, launcher: str, on_loss: Callable[[HeldError], None]) -> Iterator[None]:
    """Be the one process that runs a run.

    Args:
        launcher: its name, told to others who try.
        on_loss: called by another thread when the hold was lost to somebody else, as it can be on object storage alone.

    Raises:
        HeldError: another process holds the run; says which.
        StorageError
    """
    holder = Holder.this_process(launcher)
    path = run.local_path(HOLDER_FILE)
    if path is None:
        with Lease(run, HOLDER_FILE, holder).held(on_loss):
            yield
        return
    try:
        with hold_lock_file(path, holder.model_dump_json().encode()):
            yield
    except LockedError as error:
        raise HeldError(run, Holder.parse(error.content)) from error


def holder(run: Store) -> Holder | None:
    """The process that holds a run, None where nobody does; whether one can have it ``hold`` alone finds out.

    On object storage, a holder on another machine that died is still named for ten minutes after its last renewal.

    Raises:
        StorageError
    """
    path = run.local_path(HOLDER_FILE)
    if path is not None:
        content = read_lock_file(path)
        return None if content is None else Holder.parse(content)
    try:
        found = LeaseContent.parse(run.read(HOLDER_FILE)).holder
        silent = datetime.now(UTC) - run.written_at(HOLDER_FILE)
    except MissingObjectError:
        return None
    return None if found.is_dead or (silent > GONE_AFTER and not found.is_here) else found
