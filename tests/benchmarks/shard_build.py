"""Building a dataset on the local disk, over a raw write of the same bytes.

The source costs nothing: its galaxies, of full size, are in memory. So the figure is what the build itself takes for
each: checks of every value, .npy encoding, crc32 of every member, sha256 of the tar, statistics of the bands, receipts
and manifest. The raw write puts the same number of bytes into as many files, in pieces of 1 MiB, and looks at nothing.
On disk, the clock of both stops when the disk has the files (fsync): a survey does not fit into the page cache.

The rows "in memory" are the same on a file system in memory (/dev/shm), where the raw write is one copy: there the
processor's work shows, and what a second worker adds. Ray is running already when its workers are measured. Resharding
copies members, with crc32, sha256 and statistics.

Before that, a table of lossless compression on real galaxies (docs/shards.md says what follows from it).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np

from shards.building.build import build
from shards.building.executors import Workers
from shards.stored.stored_datasets import StoredDatasets
from tests.benchmarks.compression import print_compression
from tests.benchmarks.in_memory import InMemory
from tests.benchmarks.result import Result, Size, interleaved, paired_ratio, print_result, seconds, size_asked_for

PIECE = 1 << 20
MEMORY = Path("/dev/shm")
RAW, BUILD = "raw write", "build"
# samples, samples of a shard, rounds
SIZES: dict[Size, tuple[int, int, int]] = {
    "small": (64, 16, 1),
    "default": (1200, 100, 5),
    "large": (6000, 500, 7),
}


class Writes:
    """Each call writes the whole dataset into a new folder, and removes it when the clock has stopped."""

    def __init__(self, folder: Path, samples: int, samples_per_shard: int) -> None:
        self._folder, self._source, self._samples_per_shard = folder, InMemory(samples), samples_per_shard
        self._numbers = itertools.count()
        self.built = folder / "built"
        self.build(self.built, Workers(1))
        self.sizes = [path.stat().st_size for path in sorted(self.built.glob("*.tar"))]
        self.bytes = sum(self.sizes)

    def rate(self, write: Callable[[Path], object]) -> float:
        """Bytes a second."""
        out = self._folder / f"set-{next(self._numbers)}"

        def write_through() -> None:
            write(out)
            for path in out.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())

        rate = self.bytes / seconds(write_through)
        shutil.rmtree(out)
        return rate

    def cases(self) -> dict[str, Callable[[], float]]:
        return {
            RAW: lambda: self.rate(self.raw),
            BUILD: lambda: self.rate(lambda out: self.build(out, Workers(1))),
            "build, 2 workers": lambda: self.rate(lambda out: self.build(out, Workers(2))),
            "reshard": lambda: self.rate(lambda out: self.build(out, Workers(1), StoredDatasets([str(self.built)]))),
        }

    def raw(self, out: Path) -> None:
        out.mkdir()
        piece = np.random.default_rng(0).bytes(PIECE)
        for number, size in enumerate(self.sizes):
            with (out / f"{number}.tar").open("wb", buffering=0) as file:
                for start in range(0, size, PIECE):
                    file.write(piece[: min(PIECE, size - start)])

    def build(self, out: Path, workers: Workers, source: InMemory | StoredDatasets | None = None) -> None:
        build(
            source or self._source,
            str(out),
            samples_per_shard=self._samples_per_shard,
            workers=workers,
            contact_sheet=False,
            progress=StringIO(),
        )


def main() -> None:
    samples, samples_per_shard, rounds = SIZES[size_asked_for(__doc__)]
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    print_compression()
    with contextlib.ExitStack() as stack:
        ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        stack.callback(ray.shutdown)
        cases: dict[tuple[str, str], Callable[[], float]] = {}
        for where, place in {"disk": None, "memory": MEMORY if MEMORY.is_dir() else None}.items():
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="astroclip-shard-build-", dir=place))
            writes = Writes(Path(folder), samples, samples_per_shard)
            cases |= {(where, name): case for name, case in writes.cases().items()}
        rates = interleaved(cases, rounds)
    rows = [
        [
            f"{name}, in memory" if where == "memory" else f"{name}, on disk",
            statistics.median(rate) / writes.bytes * samples,
            statistics.median(rate) / 1e9,
            paired_ratio(rate, rates[where, RAW]),
            paired_ratio(rate, rates[where, BUILD]),
        ]
        for (where, name), rate in rates.items()
    ]
    print_result(
        Result("shard_build", paired_ratio(rates["disk", BUILD], rates["disk", RAW]), ">= 0.5"),
        f"{samples} galaxies of {writes.bytes / samples / 1e3:.0f} kB in {len(writes.sizes)} shards, "
        f"{len(os.sched_getaffinity(0))} processors; medians of {rounds} rounds",
        ["", "galaxies/s", "GB/s", "of the raw write", "of one worker"],
        rows,
    )


if __name__ == "__main__":
    main()
