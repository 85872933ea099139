"""What the sources of Multimodal Universe data sets share: files in, one partition a file or Parquet row group."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Self

from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import DataError
from shards.sample import Sample
from shards.sources.mmu_file import Form, Galaxy, list_parts, read_galaxies, read_identifiers


class MmuSource(ABC):
    """A source of one data set (https://github.com/MultimodalUniverse/MultimodalUniverse), as HDF5 or Parquet.

    Args:
        inputs: files, or folders whose .hdf5, .h5 and .parquet files are read in the order of their paths.
    """

    name: str
    image: ImageLayout | None = None
    spectrum: SpectrumLayout | None = None
    ivar = False
    form: ClassVar[Form]

    def __init__(self, inputs: Sequence[Path]) -> None:
        self._parts = list_parts(inputs)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "inputs", metavar="INPUT", nargs="+", type=Path, help="HDF5 or Parquet files, or folders of them"
        )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(args.inputs)

    def describe(self) -> dict[str, str | int | float | bool | None]:
        first, last = (self._parts[place].path for place in (0, -1))
        return {
            "files": len({part.path for part in self._parts}),
            # All files of the HDF5 form have one name: their folder says which part of the sky they hold.
            "first_file": f"{first.parent.name}/{first.name}",
            "last_file": f"{last.parent.name}/{last.name}",
        }

    @property
    def partitions(self) -> int:
        return len(self._parts)

    def keys(self, partition: int) -> Sequence[str]:
        part = self._parts[partition]
        return [self._key(identifier) for identifier in read_identifiers(part, ["object_id"])["object_id"]]

    def read(self, partition: int, rows: Sequence[int]) -> Iterator[Sample | DataError]:
        part, keys = self._parts[partition], self.keys(partition)
        for row, galaxy in zip(rows, read_galaxies(part, rows, self.form), strict=True):
            if isinstance(galaxy, DataError):
                yield galaxy
                continue
            try:
                yield self._sample(keys[row], galaxy, f"{part} object {keys[row]}")
            except DataError as error:
                yield error

    def _key(self, identifier: str) -> str:
        """A key from a published ``object_id``."""
        return identifier

    @abstractmethod
    def _sample(self, key: str, galaxy: Galaxy, where: str) -> Sample:
        """Raises DataError at a galaxy that cannot be used; ``where`` names it."""
