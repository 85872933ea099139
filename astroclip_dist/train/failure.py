"""An error of one rank as the reason why all stop: the others name it, instead of a connection that broke."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from astroclip_dist.errors import ConfigError, DataError, StorageError, UserError
from astroclip_dist.parallel.process_group import Ranks

_KEY = "astroclip/failure"
_KINDS: dict[str, type[UserError]] = {kind.__name__: kind for kind in (ConfigError, DataError, StorageError)}
# Errors of a collective, or of the store, whose other end is gone or does not come: they say nothing of the reason.
_LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed")


class OtherRankError(Exception):
    """This rank stops because another one failed.

    Args:
        message: which rank, and why.
        cause: the other rank's error, where it is the user's to mend.
    """

    def __init__(self, message: str, cause: UserError | None = None) -> None:
        super().__init__(message, cause)
        self.message, self.cause = message, cause

    def __str__(self) -> str:
        return self.message


@contextmanager
def failing_together(ranks: Ranks) -> Iterator[None]:
    """Tell the other ranks of an error raised within, through the store at which the ranks met.

    Raises:
        OtherRankError: instead of an error that another rank had first, or that only says that another rank is gone.
    """
    store = dist.distributed_c10d._get_default_store()
    try:
        yield
    except OtherRankError:
        raise
    except Exception as error:
        lost = isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)
        lost = lost or isinstance(error, dist.DistBackendError | dist.DistNetworkError | dist.DistStoreError)
        try:
            first = _first_failure(store, ranks.rank, None if lost else error)
        except RuntimeError:  # the rank that keeps the store is gone, too
            first = None
        if first is None and lost:
            late = "imed out" in str(error)
            raise OtherRankError(
                "another rank did not come to a collective in time"
                if late
                else "another rank ended without a word (killed, or out of memory?)"
            ) from error
        if first is None or first["rank"] == ranks.rank:
            raise
        cause = _KINDS[first["kind"]](*first["user_error"]) if first["user_error"] else None
        raise OtherRankError(f"rank {first['rank']} failed: {first['message']}", cause) from error


def _first_failure(store: dist.Store, rank: int, error: Exception | None) -> dict | None:
    """What the first rank that failed has told, which is this one if nobody has yet."""
    if error is not None:
        user_error = [error.field, str(error.value), error.mend] if isinstance(error, UserError) else None
        kind = next((base.__name__ for base in type(error).__mro__ if base.__name__ in _KINDS), None)
        told = {"rank": rank, "message": str(error)[:2000], "kind": kind, "user_error": user_error}
        return json.loads(store.compare_set(_KEY, "", json.dumps(told)))
    return json.loads(store.get(_KEY)) if store.check([_KEY]) else None
