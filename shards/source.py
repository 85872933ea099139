"""What every source of samples offers, and the table of their names."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from typing import Protocol, Self

from astroclip_dist.data.manifest import ImageLayout, SpectrumLayout
from shards.sample import Sample

# Imported when used: a build from FITS files must not wait for the mock survey's imports.
SOURCES = {
    "mock": "shards.mock.survey:MockSurvey",
    "pairs": "shards.sources.pairs:Pairs",
    "desi-coadd": "shards.sources.desi_coadd:DesiCoadd",
    "desi-high": "shards.sources.desi_high:DesiHigh",
    "legacy-fits": "shards.sources.legacy_fits:LegacyFits",
}


class Source(Protocol):
    """Galaxies from survey files or a simulation, one by one, on the layouts that it declares.

    ``name`` is its name in ``SOURCES``. ``image`` and ``spectrum`` are the layouts of all its samples (None: it has
    none), ``ivar`` says that every spectrum comes with inverse variances. A source reads its inputs lazily, gives the
    same samples in the same order every time, and raises DataError at the first input that it cannot use.
    """

    name: str
    image: ImageLayout | None
    spectrum: SpectrumLayout | None
    ivar: bool

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the source's own options and input files to ``astroclip shards build NAME``."""

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        """The source that parsed arguments describe."""

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """The inputs and choices that made the samples, for the manifest; no paths of this machine."""

    def __len__(self) -> int:
        """How many samples there will be."""

    def samples(self) -> Iterator[Sample]:
        """All samples, in a fixed order."""


def source_class(name: str) -> type[Source]:
    """The class of a source in the table."""
    module, attribute = SOURCES[name].split(":")
    return getattr(importlib.import_module(module), attribute)
