"""Samples and shards that cannot be read, put aside for the rest of a run: each counted once, by name."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class BadData:
    """What was put aside.

    Attributes:
        shard: URL of the tar.
        key: of the sample; empty when the whole shard cannot be read.
        samples: how many that are.
        why: the error, with lane and rank.
    """

    shard: str
    key: str
    samples: int
    why: str


class Quarantine:
    """The bad samples and shards that are known; shared by the threads of one rank.

    A sample that is in here is not read again, even if it was mended meanwhile: a run that goes on sees the batches
    that it saw before.
    """

    def __init__(self, known: Iterable[BadData] = ()) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], BadData] = {}
        self.samples = 0
        for bad in known:
            self.add(bad)

    def __contains__(self, place: tuple[str, str]) -> bool:
        """Whether a (shard URL, key) is put aside; with an empty key, whether the whole shard is."""
        return place in self._known or (place[0], "") in self._known

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[BadData]:
        with self._lock:
            return iter(list(self._known.values()))

    def add(self, bad: BadData) -> bool:
        """Put something aside; False when it was already."""
        with self._lock:
            if (bad.shard, bad.key) in self._known:
                return False
            self._known[bad.shard, bad.key] = bad
            self.samples += bad.samples
            return True

    def unknown_to(self, other: Quarantine) -> list[BadData]:
        """What is put aside here and not, under the very same name, in another quarantine."""
        return [bad for bad in self if (bad.shard, bad.key) not in other._known]

    def encode(self) -> bytes:
        """One JSON object a line, in a fixed order."""
        lines = [json.dumps(asdict(bad)) for bad in sorted(self, key=lambda bad: (bad.shard, bad.key))]
        return "".join(f"{line}\n" for line in lines).encode()

    @classmethod
    def decode(cls, text: bytes) -> Quarantine:
        """Raises ValueError, TypeError: not what ``encode`` writes."""
        return cls(BadData(**json.loads(line)) for line in text.decode().splitlines())
