"""What every source of samples offers, and the table of their names."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, Self

from astroclip_dist.errors import DataError

# Every `astroclip` command imports this table: what only types need must not slow it.
if TYPE_CHECKING:
    from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
    from shards.sample import Sample
    from shards.stored_sample import StoredSample

# Imported when used: a build from FITS files must not wait for the mock survey's imports.
SOURCES = {
    "mock": "shards.mock.survey:MockSurvey",
    "pairs": "shards.sources.pairs:Pairs",
    "desi-coadd": "shards.sources.desi_coadd:DesiCoadd",
    "desi-high": "shards.sources.desi_high:DesiHigh",
    "legacy-fits": "shards.sources.legacy_fits:LegacyFits",
    "stein": "shards.sources.stein_hdf5:SteinHdf5",
    "astroclip-hdf5": "shards.sources.astroclip_hdf5:AstroclipHdf5",
    "astroclip-arrow": "shards.sources.astroclip_arrow:AstroclipArrow",
    "mmu-legacysurvey": "shards.sources.mmu_images:MmuLegacySurvey",
    "mmu-ssl-legacysurvey": "shards.sources.mmu_images:MmuSslLegacySurvey",
    "mmu-desi": "shards.sources.mmu_desi:MmuDesi",
    "mmu-gz10": "shards.sources.mmu_gz10:MmuGz10",
    "desi-healpix": "shards.sources.desi_healpix:DesiHealpix",
    "joined": "shards.sources.joined:Joined",
}


class Origin(Protocol):
    """Where the galaxies of a build come from, on the layouts that it declares, readable in any order.

    ``image`` and ``spectrum`` are the layouts of all its samples (None: it has none), ``ivar`` says that every spectrum
    comes with inverse variances. The input falls into partitions (files, healpix pixels, blocks of a table), which
    different processes read at the same time: an origin can be pickled, opens its files only while it reads them, and
    gives the same samples for the same rows every time.
    """

    name: str
    image: ImageLayout | None
    spectrum: SpectrumLayout | None
    ivar: bool

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """The inputs and choices that made the samples, for the manifest; no paths of this machine."""

    @property
    def partitions(self) -> int:
        """How many partitions there are."""

    def keys(self, partition: int) -> Sequence[str]:
        """The keys of a partition's samples, in their order; reads identifiers, no pixels.

        Raises:
            DataError: the partition cannot be read.
        """

    def read(self, partition: int, rows: Sequence[int]) -> Iterator[Sample | StoredSample | DataError]:
        """The samples at some places of ``keys(partition)``, one for each row, in the order of the rows.

        A galaxy that cannot be used comes as the DataError that says why, in its place.

        Args:
            rows: increasing.

        Raises:
            DataError: the partition cannot be read at all.
        """


class Source(Origin, Protocol):
    """Survey files or a simulation; ``name`` is its name in ``SOURCES``."""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the source's own options and input files to ``astroclip shards build NAME``."""

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        """The source that parsed arguments describe."""

    def read(self, partition: int, rows: Sequence[int]) -> Iterator[Sample | DataError]:
        """As of an :class:`Origin`."""


def all_samples(source: Source) -> Iterator[Sample]:
    """Every sample of a source, partition after partition.

    Raises:
        DataError: at the first galaxy or partition that cannot be used.
    """
    for partition in range(source.partitions):
        for sample in source.read(partition, range(len(source.keys(partition)))):
            if isinstance(sample, DataError):
                raise sample
            yield sample


def source_class(name: str) -> type[Source]:
    """The class of a source in the table."""
    module, attribute = SOURCES[name].split(":")
    return getattr(importlib.import_module(module), attribute)
