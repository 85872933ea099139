"""Start-up with a manifest of 76,446,849 samples over one second, above an empty dataset; memory over 100 MB.

Each case is a process of its own that reads and checks the manifest from disk, opens the training split, makes the
order, and finds the windows and the shuffled samples of a lane at 90 % of an epoch; the time is that of the second of
two openings, so that imports are not in it, and the memory what the process holds at its peak. The ratio is the worse
of (seconds - empty) / 1 s and (MB - empty) / 100 MB. Nothing grows with samples; what grows is the list of shards.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from astroclip_dist.data.ordering.mixture import order_of
from astroclip_dist.data.ordering.order import Cursor
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.stored.manifest import (
    MANIFEST_NAME,
    ImageLayout,
    Manifest,
    ShardEntry,
    SpectrumLayout,
    encode_manifest,
)
from astroclip_dist.data.streaming.window import needs
from tests.benchmarks.result import Result, Size, print_result, size_asked_for

SURVEY = 76_446_849
SHARD = 2_000
SECONDS, MEGABYTES = 1.0, 100.0
# Samples of each case; the first is what the others are measured above.
SIZES: dict[Size, tuple[int, ...]] = {
    "small": (2_000, 1_000_000, SURVEY),
    "default": (2_000, 1_000_000, 10_000_000, SURVEY, 1_000_000_000),
    "large": (2_000, 1_000_000, 10_000_000, SURVEY, 1_000_000_000, 10_000_000_000),
}


def shards_of(samples: int) -> Iterator[ShardEntry]:
    for number in range(-(-samples // SHARD)):
        held = min(SHARD, samples - number * SHARD)
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        yield ShardEntry(f"train-{number:06d}", 344_064 * held, held, "train", digest, digest[::-1])


def write_manifest(folder: Path, samples: int) -> None:
    manifest = Manifest(
        source={"kind": "benchmark"},
        image=ImageLayout(),
        spectrum=SpectrumLayout(),
        ivar=True,
        counts={"train": samples},
        split_fractions={"train": 1.0},
        shards=tuple(shards_of(samples)),
    )
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(manifest))


def resident_mb(line: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(row.split()[1] for row in status.splitlines() if row.startswith(line))) / 1e3


def start(url: str) -> None:
    dataset = Dataset.open([url], ["train"])
    order = order_of(dataset, seed=0, lanes=1, global_batch=1, window_shards=2)
    cursor = Cursor(0, int(0.9 * order.steps_per_epoch))
    for need in islice(needs(order, [0], cursor), 2):
        order.components[0].window_samples(need.window)


def measure_here(url: str) -> None:
    """Print seconds and peak memory of this process as JSON."""
    start(url)
    began = time.perf_counter()
    start(url)
    print(json.dumps([time.perf_counter() - began, resident_mb("VmHWM")]))


def measure(folder: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", "tests.benchmarks.manifest_scale", "--measure", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, megabytes = json.loads(done.stdout)
    return seconds, megabytes


def main() -> None:
    cases = SIZES[size_asked_for(__doc__)]
    measured = {}
    for samples in cases:
        with tempfile.TemporaryDirectory(prefix="astroclip-manifest-") as folder:
            write_manifest(Path(folder), samples)
            measured[samples] = measure(Path(folder))
    empty_s, empty_mb = measured[cases[0]]
    seconds, megabytes = measured[SURVEY][0] - empty_s, measured[SURVEY][1] - empty_mb
    print_result(
        Result("manifest_scale", max(seconds / SECONDS, megabytes / MEGABYTES), "<= 1"),
        f"shards of {SHARD:,} samples; seconds to a window's samples and peak memory, above a dataset of one shard",
        ["samples", "shards", "s", "MB"],
        [
            [f"{samples:,}", -(-samples // SHARD), measured[samples][0] - empty_s, measured[samples][1] - empty_mb]
            for samples in cases
        ],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure_here(sys.argv[2])
    else:
        main()
