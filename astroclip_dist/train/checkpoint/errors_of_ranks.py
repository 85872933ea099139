"""An error of any rank as the error of all, in saving and loading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from astroclip_dist.errors import UserError
from astroclip_dist.parallel.process_group import Ranks

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


class LateError(Exception):
    """A rank was not done when it had to be."""


@contextmanager
def errors_of_ranks() -> Iterator[None]:
    """Torch collects what the ranks raised in one BaseException, which passes every ``except Exception``: raise one of
    them instead."""
    try:
        yield
    except CheckpointException as collected:
        raise _worst([error for error, _ in collected.failures.values()]) from collected


def gather_or_raise(ranks: Ranks, mine: T | Exception) -> list[T]:
    """What all ranks have, on the first rank, and an empty list on the others; called by all ranks together.

    Raises:
        Exception: on all ranks, when one of them has an error instead.
    """
    told = mine if _travels(mine) else RuntimeError(f"rank {ranks.rank}: {mine!r}")
    found: list[T | Exception] = [told] * ranks.world_size
    dist.gather_object(told, found if ranks.is_first else None)
    errors = [answer for answer in found if isinstance(answer, Exception)] if ranks.is_first else []
    verdict: list[Exception | None] = [_worst(errors) if errors else None]
    dist.broadcast_object_list(verdict)
    if verdict[0] is not None:
        # This rank's own error, if it has one, with its traceback.
        raise verdict[0] from (mine if isinstance(mine, Exception) and mine is not verdict[0] else None)
    return [answer for answer in found if not isinstance(answer, Exception)] if ranks.is_first else []


def _worst(errors: Sequence[E]) -> E:
    """The first rank's error, but one that the user can mend before any other, and any before mere lateness."""
    return min(
        errors, key=lambda error: 0 if isinstance(error, UserError) else 2 if isinstance(error, LateError) else 1
    )


def _travels(answer: object) -> bool:
    """Whether it surely survives the way to another process; not every error does."""
    return not isinstance(answer, Exception) or isinstance(answer, UserError | LateError)
