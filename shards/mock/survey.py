"""The mock survey as a source of samples: any number of galaxies, made by all processors, the same every time."""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

from astroclip_dist.data.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import ConfigError
from shards.mock.galaxy import BRIGHT_LIMIT, FAINT_LIMIT, make_galaxy
from shards.mock.stellar_grids import GridName, load_stellar_grid
from shards.sample import Sample

# Changes whenever the galaxy of some (seed, index) would differ.
RECIPE = "mock-1"
# Galaxies that one task makes: large enough to hide the hand-over, small enough to keep few in memory.
_CHUNK = 16


class MockSurvey:
    """Galaxies 0 to ``galaxies`` - 1 of a seed. The bytes of a galaxy depend on (seed, index, stellar grid) alone.

    Args:
        galaxies: how many.
        seed: which universe; 0 to 2**63 - 1.
        workers: processes that make galaxies; None takes every processor that this process may use.
        stellar_grid: "bc03" (optional package), "builtin", or "auto": bc03 where it is installed.

    Raises:
        ConfigError: a number out of range.
        DataError: a stellar grid that is not installed.
    """

    name = "mock"
    image = ImageLayout()
    spectrum = SpectrumLayout()
    ivar = True

    def __init__(
        self, galaxies: int, seed: int = 0, workers: int | None = None, stellar_grid: GridName = "auto"
    ) -> None:
        if galaxies < 1:
            raise ConfigError("--galaxies", galaxies, "Ask for at least one.")
        if not 0 <= seed < 2**63:
            raise ConfigError("--seed", seed, "Use 0 to 2**63 - 1.")
        if workers is not None and workers < 1:
            raise ConfigError("--workers", workers, "Use at least one process.")
        self.galaxies, self.seed = galaxies, seed
        self.workers = workers or len(os.sched_getaffinity(0))
        # Resolved here, so that every process uses the same grid and a missing one is said at once.
        self.stellar_grid: GridName = "bc03" if load_stellar_grid(stellar_grid).name == "bc03" else "builtin"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--galaxies", type=int, required=True, metavar="N", help="number of galaxies")
        parser.add_argument("--seed", type=int, default=0, metavar="S", help="which universe (default: 0)")
        parser.add_argument("--workers", type=int, metavar="K", help="processes (default: one a processor)")
        parser.add_argument(
            "--stellar-grid",
            choices=("auto", "bc03", "builtin"),
            default="auto",
            help="stellar populations: BC03-MILES of the extra 'stellar', or the built-in ones (default: auto)",
        )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> MockSurvey:
        return cls(args.galaxies, args.seed, args.workers, args.stellar_grid)

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

    def __len__(self) -> int:
        return self.galaxies

    def samples(self) -> Iterator[Sample]:
        """All galaxies in the order of their index; a few chunks a worker are in flight, however slow the reader."""
        if self.workers == 1:
            for start in range(0, self.galaxies, _CHUNK):
                yield from self._chunk(start)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, mp_context=context) as pool:
            pending: deque[Future[list[Sample]]] = deque()
            try:
                for start in range(0, self.galaxies, _CHUNK):
                    pending.append(pool.submit(self._chunk, start))
                    if len(pending) > 2 * self.workers:
                        yield from pending.popleft().result()
                while pending:
                    yield from pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _chunk(self, start: int) -> list[Sample]:
        grid = load_stellar_grid(self.stellar_grid)
        return [make_galaxy(self.seed, i, grid)[0] for i in range(start, min(start + _CHUNK, self.galaxies))]
