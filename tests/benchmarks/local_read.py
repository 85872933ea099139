"""Batches from a local disk, over a raw sequential read of the same files by as many threads.

The files lie in the page cache. Ours is the whole way to a ready batch: order, index, reading in shuffled order into
the batch's tensors, crc32 of every member. The raw read does nothing with the bytes, and its buffers of 4 MiB stay in
the processor's cache, which batches cannot: the row "into batches" reads into as much memory as the batches take that
are held at once, still without looking at a byte. webdataset reads in the order of the files and checks nothing.

Where the time goes, CPU microseconds a sample of 344 kB on one busy core: raw read 64, raw read into memory of a
batch's size 75, the same in shuffled order 61, with crc32 67, the whole filling of a batch 97, and 202 with memory that
is new to the process, whose page faults were most of the first version's time (see data/streaming/batch_memory.py).
Taken: memory used again, one preadv a sample, fewer and larger tasks. Tried and not taken: copying from mmap (faster
only while the mapping lives, slower mapped anew, and a truncated file ends the process), more threads, a shorter switch
interval.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import webdataset

from astroclip_dist.config.run import Reading
from astroclip_dist.data.ordering.order import Cursor, Order
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.data.streaming.stream import Stream
from tests.benchmarks.result import Result, Size, interleaved, paired_ratio, print_result, seconds, size_asked_for
from tests.random_survey import write_random_survey

MEMBERS = ("image", "spectrum", "ivar")
THREADS = 2  # reading threads of the stream's default, of the raw reads, and workers of webdataset's loader
LANES = 4
CHUNK = 4 << 20
# samples, samples of a shard, samples of a batch, repeats
SIZES: dict[Size, tuple[int, int, int, int]] = {
    "small": (128, 16, 16, 2),
    "default": (2048, 256, 128, 11),
    "large": (8192, 1024, 256, 11),
}


class RawRead:
    """Reads files from begin to end, each thread its own, into memory that was used before.

    Args:
        buffer_bytes: of all threads together, filled round and round in reads of 4 MiB.
        threads: one is what `cat` does.
    """

    def __init__(self, files: list[Path], buffer_bytes: int, threads: int = THREADS) -> None:
        self._files, self._threads = files, threads
        self._buffers = [np.ones(max(buffer_bytes // threads, CHUNK), np.uint8).data for _ in range(threads)]

    def __call__(self) -> None:
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(self._read, range(self._threads)))

    def _read(self, thread: int) -> None:
        buffer = self._buffers[thread]
        for path in self._files[thread :: self._threads]:
            with path.open("rb", buffering=0) as file:
                at = 0
                while got := file.readinto(buffer[at : at + CHUNK]):
                    at = (at + got) % (len(buffer) - CHUNK + 1)


def steady_rate(batches: Iterator[object], batch: int, steps: int) -> float:
    """Samples a second once the reading ahead is under way; batches are dropped one by one, as training does."""
    for _ in itertools.islice(batches, 4):
        pass
    return steps * batch / seconds(lambda: [None for _ in itertools.islice(batches, steps)])


def read_with_stream(url: str, batch: int, steps: int) -> float:
    dataset = Dataset.open([url], ["train"])
    order = Order(dataset.shard_samples, seed=0, lanes=LANES, global_batch=batch, window_shards=2)
    reading = Reading(threads=THREADS)
    with Stream(dataset, order, MEMBERS, rank=0, world_size=1, cursor=Cursor(), reading=reading) as stream:
        return steady_rate(stream, batch, steps)


def read_with_webdataset(files: list[Path], batch: int, steps: int, workers: int) -> float:
    # repeat: so that no worker starts anew, or ends early, while the clock runs.
    samples = webdataset.WebDataset([str(path) for path in files], shardshuffle=False, empty_check=False).repeat()
    batches = samples.decode().to_tuple(*(f"{member}.npy" for member in MEMBERS)).batched(batch)
    loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=workers)
    return steady_rate(iter(loader), batch, steps)


def main() -> None:
    samples, shard, batch, repeats = SIZES[size_asked_for(__doc__)]
    with tempfile.TemporaryDirectory(prefix="astroclip-local-read-") as folder:
        write_random_survey(folder, samples, samples_per_shard=shard, image=ImageLayout(), spectrum=SpectrumLayout())
        files = sorted(Path(folder).glob("*.tar"))
        size = sum(path.stat().st_size for path in files)
        steps = samples // batch
        batch_bytes = batch * size // samples
        batches_held = 5  # two ahead, one being filled, one waiting for its place, one in training
        small_buffers, large_buffers = RawRead(files, THREADS * CHUNK), RawRead(files, batches_held * batch_bytes)
        one_reader = RawRead(files, CHUNK, threads=1)
        raw = "raw read, 4 MiB buffers"
        ours = "ours: checked, shuffled batches"
        cases: dict[str, Callable[[], float]] = {
            raw: lambda: samples / seconds(small_buffers),
            "raw read, one thread": lambda: samples / seconds(one_reader),
            "raw read, into batches": lambda: samples / seconds(large_buffers),
            ours: partial(read_with_stream, Path(folder).as_uri(), batch, steps),
            "webdataset, in the process": partial(read_with_webdataset, files, batch, max(1, steps // 4), 0),
            f"webdataset, {THREADS} workers": partial(read_with_webdataset, files, batch, max(1, steps // 4), THREADS),
        }
        rates = interleaved(cases, repeats)
    rows = [
        [name, statistics.median(rate), statistics.median(rate) * size / samples / 1e9, paired_ratio(rate, rates[raw])]
        for name, rate in rates.items()
    ]
    print_result(
        Result("local_read", paired_ratio(rates[ours], rates[raw]), ">= 0.8"),
        f"{samples} samples of {size / samples / 1e3:.0f} kB in {len(files)} shards, batches of {batch}, "
        f"{THREADS} reading threads; medians of {repeats} rounds",
        ["", "samples/s", "GB/s", "of the raw read"],
        rows,
    )


if __name__ == "__main__":
    main()
