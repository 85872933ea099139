"""How ranks ask each other what they do when a run stands still: notes in the store at which they met."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import torch.distributed as dist

from astroclip_dist.train.health.verdict import Verdict, Whereabouts

_POLL_S = 0.05


class Inquiry:
    """One rank's part of it, over a connection of its own: the training thread's may be what is blocked.

    Every method may block for ever where the rank that keeps the store is stopped, and raises RuntimeError where it is
    gone.

    Args:
        name: of this training among those of the same processes.
    """

    def __init__(self, name: str, rank: int, world_size: int) -> None:
        self._rank, self._world_size = rank, world_size
        self._store = dist.PrefixStore(name, dist.distributed_c10d._get_default_store().clone())

    def ask(self) -> bool:
        """Ask all ranks. True for the first to ask: it is the judge."""
        return int(self._store.compare_set("asked", "", str(self._rank))) == self._rank

    def is_asked(self) -> bool:
        return self._store.check(["asked"])

    def answer(self, whereabouts: Whereabouts) -> None:
        """Say what this rank does."""
        self._store.set(f"answer/{self._rank}", json.dumps(asdict(whereabouts)))
        self._store.add("answers", 1)

    def answers(self, deadline: float) -> dict[int, Whereabouts]:
        """By rank, of those that answer until then (``time.monotonic``)."""
        while self._store.add("answers", 0) < self._world_size and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        ranks = [rank for rank in range(self._world_size) if self._store.check([f"answer/{rank}"])]
        return {rank: Whereabouts(**json.loads(self._store.get(f"answer/{rank}"))) for rank in ranks}

    def publish(self, verdict: Verdict) -> None:
        self._store.set("verdict", json.dumps(asdict(verdict)))

    def verdict(self, deadline: float) -> Verdict | None:
        """The judge's, if it comes until then (``time.monotonic``)."""
        while not self._store.check(["verdict"]):
            if time.monotonic() > deadline:
                return None
            time.sleep(_POLL_S)
        return Verdict(**json.loads(self._store.get("verdict")))
