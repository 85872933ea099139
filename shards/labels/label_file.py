"""Which kinds of label files there are, and one of them as it is named on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from astroclip_dist.errors import ConfigError, DataError
from shards.labels.galaxy_zoo import MIN_VOTES, read_galaxy_zoo
from shards.labels.provabgs import provabgs_labels, read_published
from shards.labels.table import LabelTable
from shards.sample import Sample

KINDS = ("provabgs", "mmu-provabgs", "gz-decals", "table")


@dataclass(frozen=True)
class LabelFile:
    """A file of labels; each process that looks galaxies up in it reads it once.

    Args:
        kind: ``provabgs`` (as published), ``mmu-provabgs`` (a file or folder), ``gz-decals``, or ``table``: a Parquet
            file with ``targetid``, or ``ra`` and ``dec``, and any label columns, whose names are kept.
        min_votes: of ``gz-decals``.
    """

    kind: str
    path: Path
    min_votes: int = MIN_VOTES

    @classmethod
    def parse(cls, text: str, min_votes: int) -> LabelFile:
        """``KIND=FILE``.

        Raises:
            ConfigError: no such kind.
        """
        kind, _, path = text.partition("=")
        if kind not in KINDS or not path:
            raise ConfigError("--labels", text, f"Write KIND=FILE, with a kind of {', '.join(KINDS)}.")
        return cls(kind, Path(path), min_votes)

    def load(self) -> LabelTable:
        """The labels.

        Raises:
            DataError: the file cannot be used.
        """
        return _load(self)

    def find(self, sample: Sample) -> dict[str, Any]:
        """The labels of a galaxy; empty where there are none."""
        return self.load().find(sample)


@lru_cache(maxsize=8)
def _load(file: LabelFile) -> LabelTable:
    name = str(file.path)
    if file.kind == "provabgs":
        return LabelTable(provabgs_labels(read_published(file.path), name), name)
    if file.kind == "mmu-provabgs":
        from shards.sources.mmu_provabgs import read_provabgs_table

        return LabelTable(provabgs_labels(read_provabgs_table([file.path]), name), name)
    if file.kind == "gz-decals":
        return LabelTable(read_galaxy_zoo(file.path, file.min_votes), name)
    return LabelTable(_read_parquet(file.path), name)


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except FileNotFoundError as error:
        raise DataError(str(path), "no such file", "Check the path.") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(str(path), "not a Parquet file", "Fetch or write it again.") from error
