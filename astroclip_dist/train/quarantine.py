"""The quarantine of a whole run: what any rank put aside, told to all ranks, written down, and held to a budget."""

from __future__ import annotations

import logging

import torch.distributed as dist

from astroclip_dist.data.reading.quarantine import BadData, Quarantine
from astroclip_dist.errors import DataError
from astroclip_dist.parallel.process_group import Ranks
from astroclip_dist.store import MissingObjectError, Store

QUARANTINE_FILE = "quarantine.jsonl"
log = logging.getLogger(__name__)


class RunQuarantine:
    """One rank's view of it.

    Args:
        run: the run folder, whose ``quarantine.jsonl`` a restarted run takes over.
        budget: samples that may be put aside over the whole run.

    Raises:
        DataError: the file is not one that a run wrote.
    """

    def __init__(self, run: Store, ranks: Ranks, budget: int) -> None:
        self._run, self._ranks, self.budget = run, ranks, budget
        try:
            self.local = Quarantine.decode(run.read(QUARANTINE_FILE))
            self._told = Quarantine.decode(self.local.encode())
        except MissingObjectError:
            self.local, self._told = Quarantine(), Quarantine()
        except (ValueError, TypeError) as error:
            raise DataError(run.locate(QUARANTINE_FILE), f"damaged ({error})", "Remove it.") from error

    @property
    def samples(self) -> int:
        """Put aside so far, by all ranks."""
        return self._told.samples

    @property
    def news(self) -> int:
        """What this rank found and did not tell yet."""
        return len(self.local) - len(self._told)

    def tell(self) -> list[BadData]:
        """Exchange the news; called by all ranks together.

        Returns:
            What is new to the run, the same on all ranks.

        Raises:
            DataError: more than the budget was put aside.
        """
        found: list[list[BadData]] = [[]] * self._ranks.world_size
        dist.all_gather_object(found, self.local.unknown_to(self._told))
        new = [bad for part in found for bad in part if self._told.add(bad)]
        for bad in new:
            self.local.add(bad)
        if self._ranks.is_first:
            self._run.put(QUARANTINE_FILE, self._told.encode())
            for bad in new:
                log.warning("quarantined, %d samples in all: %s", self.samples, bad.why)
        if self.samples > self.budget:
            raise DataError(
                "health.quarantine_budget",
                f"{self.samples} samples cannot be read; {self.budget} are allowed; the last: {new[-1].why}",
                f"{self._run.locate(QUARANTINE_FILE)} lists them. Repair the dataset (astroclip shards repair), remove "
                "that file, and start again.",
            )
        return new
