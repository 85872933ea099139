"""The mock survey as a source of samples: any number of galaxies, the same every time."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import ConfigError, DataError
from shards.mock.galaxy import BRIGHT_LIMIT, FAINT_LIMIT, galaxy_key, make_galaxy
from shards.mock.stellar_grids import GridName, load_stellar_grid
from shards.sample import Sample

# Changes whenever the galaxy of some (seed, index) would differ.
RECIPE = "mock-1"
# Galaxies of a partition: a build lists the keys of one partition at a time.
_PARTITION = 10_000


class MockSurvey:
    """Galaxies 0 to ``galaxies`` - 1 of a seed. The bytes of a galaxy depend on (seed, index, stellar grid) alone.

    Args:
        galaxies: how many.
        seed: which universe; 0 to 2**63 - 1.
        stellar_grid: "bc03" (optional package), "builtin", or "auto": bc03 where it is installed.

    Raises:
        ConfigError: a number out of range.
        DataError: a stellar grid that is not installed.
    """

    name = "mock"
    image: ImageLayout | None = ImageLayout()
    spectrum: SpectrumLayout | None = SpectrumLayout()
    ivar = True

    def __init__(self, galaxies: int, seed: int = 0, stellar_grid: GridName = "auto") -> None:
        if galaxies < 1:
            raise ConfigError("--galaxies", galaxies, "Ask for at least one.")
        if not 0 <= seed < 2**63:
            raise ConfigError("--seed", seed, "Use 0 to 2**63 - 1.")
        self.galaxies, self.seed = galaxies, seed
        # Resolved here, so that every process uses the same grid and a missing one is said at once.
        self.stellar_grid: GridName = "bc03" if load_stellar_grid(stellar_grid).name == "bc03" else "builtin"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--galaxies", type=int, required=True, metavar="N", help="number of galaxies")
        parser.add_argument("--seed", type=int, default=0, metavar="S", help="which universe (default: 0)")
        parser.add_argument(
            "--stellar-grid",
            choices=("auto", "bc03", "builtin"),
            default="auto",
            help="stellar populations: BC03-MILES of the extra 'stellar', or the built-in ones (default: auto)",
        )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> MockSurvey:
        return cls(args.galaxies, args.seed, args.stellar_grid)

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """What the manifest keeps: enough to make the same galaxies again."""
        return {
            "kind": self.name,
            "recipe": RECIPE,
            "seed": self.seed,
            "galaxies": self.galaxies,
            "stellar_grid": self.stellar_grid,
            "mag_z_min": BRIGHT_LIMIT,
            "mag_z_max": FAINT_LIMIT,
        }

    @property
    def partitions(self) -> int:
        return -(-self.galaxies // _PARTITION)

    def keys(self, partition: int) -> list[str]:
        return [galaxy_key(self.seed, index) for index in self._indices(partition)]

    def read(self, partition: int, rows: Sequence[int]) -> Iterator[Sample | DataError]:
        grid = load_stellar_grid(self.stellar_grid)
        indices = self._indices(partition)
        for row in rows:
            yield make_galaxy(self.seed, indices[row], grid)[0]

    def _indices(self, partition: int) -> range:
        start = partition * _PARTITION
        return range(start, min(start + _PARTITION, self.galaxies))
