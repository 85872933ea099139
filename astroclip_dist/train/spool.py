"""Batches of tracking records in a run folder: kept there, in order, until MLflow has them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence

from astroclip_dist.store import Store
from astroclip_dist.train.records import Record
from astroclip_dist.train.run_folder import SPOOL_FOLDER


class Spool:
    """The objects ``tracking/NUMBER.jsonl``, the oldest first; safe to use from several threads.

    Args:
        store: the run folder; what earlier processes left there is taken over.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._names = [found.name for found in store.list(SPOOL_FOLDER) if found.name.endswith(".jsonl")]

    def __len__(self) -> int:
        """How many batches wait."""
        return len(self._names)

    @property
    def url(self) -> str:
        return self._store.locate(SPOOL_FOLDER)

    def append(self, records: Sequence[Record]) -> None:
        """Write a batch behind all others.

        Raises:
            StorageError
        """
        with self._lock:
            # Larger than any number before, whatever the clock says; by the clock, so that a write of a process that
            # was killed cannot arrive late under the number of a later one.
            last = int(self._names[-1].removeprefix(f"{SPOOL_FOLDER}/").removesuffix(".jsonl")) if self._names else 0
            name = f"{SPOOL_FOLDER}/{max(last + 1, time.time_ns()):020d}.jsonl"
            self._store.put(name, b"\n".join(json.dumps(record).encode() for record in records))
            self._names.append(name)

    def oldest(self) -> list[Record] | None:
        """The records that are to be sent first; None when nothing waits.

        Raises:
            StorageError
        """
        if not self._names:
            return None
        return [json.loads(line) for line in self._store.read(self._names[0]).splitlines()]

    def drop_oldest(self) -> None:
        """Remove the batch that ``oldest`` gave: it is sent.

        Raises:
            StorageError
        """
        self._store.delete([self._names[0]])
        with self._lock:
            del self._names[0]
