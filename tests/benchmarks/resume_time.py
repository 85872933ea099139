"""Time to the first batch when a run goes on at 90 % of an epoch, over that when it starts.

From the making of order and stream to the first batch, on one rank, for several world sizes: a run may go on with
another one. The ratio is the worst of them. Below: what it costs webdataset to get there, which has to read and skip
all samples before.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import webdataset

from astroclip_dist.data.ordering.order import Cursor, Order
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.streaming.stream import Stream
from tests.benchmarks.result import Result, Size, interleaved, paired_ratio, print_result, seconds, size_asked_for
from tests.random_survey import write_random_survey

MEMBERS = ("image", "spectrum")
LANES, SHARD = 8, 50
WORLD_SIZES = (1, 2, 4, 8)
RESUME_AT = 0.9
# samples, global batch, repeats
SIZES: dict[Size, tuple[int, int, int]] = {
    "small": (1600, 32, 3),
    "default": (20_000, 64, 60),
    "large": (100_000, 64, 100),
}


def first_batch(dataset: Dataset, batch: int, world_size: int, place: float) -> float:
    """Seconds to the first batch of a rank at a place in the epoch (0 to 1)."""
    threads = threading.active_count()
    began = time.perf_counter()
    order = Order(dataset.shard_samples, seed=0, lanes=LANES, global_batch=batch, window_shards=2)
    cursor = Cursor(0, round(place * order.steps_per_epoch))
    with Stream(dataset, order, MEMBERS, rank=0, world_size=world_size, cursor=cursor) as stream:
        next(stream)
        took = time.perf_counter() - began
    while threading.active_count() > threads:  # what it was reading ahead must not fall into the next one's time
        time.sleep(0.001)
    return took


def skip_to(files: list[Path], position: int) -> float:
    """Seconds until webdataset, decoding nothing, gives the sample at a position."""
    samples = webdataset.WebDataset([str(path) for path in files], shardshuffle=False)
    return seconds(lambda: next(itertools.islice(samples, position, None)))


def main() -> None:
    samples, batch, repeats = SIZES[size_asked_for(__doc__)]
    with tempfile.TemporaryDirectory(prefix="astroclip-resume-time-") as folder:
        write_random_survey(folder, samples, samples_per_shard=SHARD)
        dataset = Dataset.open([folder], ["train"])
        cases = {
            (world_size, place): partial(first_batch, dataset, batch, world_size, place)
            for world_size in WORLD_SIZES
            for place in (0.0, RESUME_AT)
        }
        times = interleaved(cases, repeats)
        skipping = skip_to(sorted(Path(folder).glob("*.tar")), round(RESUME_AT * samples))
    ratios = {size: paired_ratio(times[size, RESUME_AT], times[size, 0.0]) for size in WORLD_SIZES}
    rows: list[list[object]] = [
        [
            f"{size} ranks",
            1e3 * statistics.median(times[size, 0.0]),
            1e3 * statistics.median(times[size, RESUME_AT]),
            ratios[size],
        ]
        for size in WORLD_SIZES
    ]
    rows.append(["webdataset, skipping", "-", 1e3 * skipping, "-"])
    print_result(
        Result("resume_time", max(ratios.values()), "<= 1.1"),
        f"{samples} samples in {len(dataset.shards)} shards, global batch {batch}, {LANES} lanes; milliseconds to the "
        f"first batch, medians of {repeats} rounds",
        ["", "at the start", f"at {RESUME_AT:.0%}", "ratio"],
        rows,
    )


if __name__ == "__main__":
    main()
