"""The readers that ``s3_stream`` compares, each run in a process of its own: galaxies from S3 to batches of tensors.

    python -m tests.benchmarks.s3_readers < JOB     # a Job as JSON; prints a Measured as JSON

The clock runs from the making of the reader, after all imports, to the last batch: the first fetch counts. All are
asked for one epoch, and fetch no more. CPU is user and system time of the process and of its workers, which have ended
by then. All deliver images (n, 3, 152, 152) and spectra (n, 7781), float32, as torch tensors.

Settings of the peers, chosen in their favour. All read in the order of the files, unshuffled, and check nothing.
webdataset knows no s3 URLs: a whole shard at a time is read by obstore, or through ``curl`` with presigned URLs, as its
manual does. litdata reads through obstore, 4 chunks ahead; Streaming reads through its boto3, 8 batches ahead. Their
caches are cold; their chunks have their default of 64 MB.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import io
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from urllib.parse import urlsplit

import numpy as np
import obstore
from obstore.store import S3Store
from torch import Tensor
from torch.utils.data import DataLoader

from astroclip_dist.config.run import Reading
from astroclip_dist.data.ordering.order import Cursor, Order
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.streaming.stream import Stream
from tests.benchmarks.peers import without_unused_packages

LANES = 2
Batches = Iterator[tuple[Tensor, Tensor]]  # images and spectra
Reader = Callable[[], Batches]


@dataclass(frozen=True)
class Job:
    """What a reader is to read.

    Attributes:
        reader: a name in ``READERS``.
        url: of the dataset in the reader's format, ``s3://bucket/prefix``.
        tars: URLs of its tars, for the readers that know no manifest.
        workers: processes; of ours and of the raw GETs, threads.
    """

    reader: str
    url: str
    tars: list[str]
    samples: int
    batch: int
    workers: int


@dataclass(frozen=True)
class Measured:
    """What came of it; ``digest`` tells which galaxies came, in whatever order."""

    samples: int
    seconds: float
    cpu_seconds: float
    digest: str


def digest(first_fluxes: np.ndarray) -> str:
    """Of the first flux of each galaxy's spectrum, (n,) float32."""
    return hashlib.sha256(np.sort(first_fluxes).tobytes()).hexdigest()[:16]


def ours(job: Job, scratch: str) -> Reader:
    def batches() -> Batches:
        dataset = Dataset.open([job.url], ["train"])
        order = Order(dataset.shard_samples, seed=0, lanes=LANES, global_batch=job.batch, window_shards=1)
        members, reading = ("image", "spectrum"), Reading(threads=job.workers)
        with Stream(
            dataset,
            order,
            members,
            rank=0,
            world_size=1,
            cursor=Cursor(),
            steps=order.steps_per_epoch,
            reading=reading,
        ) as stream:
            for batch in stream:
                yield batch.members["image"], batch.members["spectrum"]

    return batches


def raw_gets(job: Job, scratch: str) -> Reader:
    """Whole objects, nothing done with them."""

    def get(url: str) -> int:
        return len(obstore.get(store, urlsplit(url).path).bytes())

    store = _bucket(job.url)

    def batches() -> Batches:
        with ThreadPoolExecutor(job.workers) as pool:
            list(pool.map(get, job.tars))
        yield from ()

    return batches


def webdataset(job: Job, scratch: str) -> Reader:
    wds = import_module("webdataset")
    # One client a process, made in the worker: it does not survive a fork.
    clients: dict[int, S3Store] = {}

    def open_shard(url: str, mode: str, bufsize: int) -> io.BytesIO:
        client = clients.setdefault(os.getpid(), _bucket(url))
        return io.BytesIO(obstore.get(client, urlsplit(url).path).bytes())

    import_module("webdataset.gopen").gopen_schemes["s3"] = open_shard

    def batches() -> Batches:
        samples = wds.WebDataset(job.tars, shardshuffle=False, empty_check=False).decode()
        arrays = samples.to_tuple("image.npy", "spectrum.npy").batched(job.batch)
        yield from DataLoader(arrays, batch_size=None, num_workers=job.workers)

    return batches


def litdata(job: Job, scratch: str) -> Reader:
    package = import_module("litdata")
    # Its client refuses plain http, which a server on the loopback interface speaks, and has no option for it.
    import_module("litdata.streaming.downloader")._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"

    def batches() -> Batches:
        dataset = package.StreamingDataset(job.url, cache_dir=scratch, max_pre_download=4)
        for batch in package.StreamingDataLoader(dataset, batch_size=job.batch, num_workers=job.workers):
            yield batch["image"], batch["spectrum"]

    return batches


def streaming(job: Job, scratch: str) -> Reader:
    without_unused_packages()
    package = import_module("streaming")
    os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]

    def batches() -> Batches:
        dataset = package.StreamingDataset(
            remote=job.url, local=scratch, shuffle=False, batch_size=job.batch, predownload=8 * job.batch
        )
        for batch in DataLoader(dataset, batch_size=job.batch, num_workers=job.workers):
            yield batch["image"], batch["spectrum"]

    return batches


READERS: dict[str, Callable[[Job, str], Reader]] = {
    "ours": ours,
    "raw_gets": raw_gets,
    "webdataset": webdataset,
    "litdata": litdata,
    "streaming": streaming,
}


def read(job: Job) -> Measured:
    """Read all of it once.

    Raises:
        RuntimeError: batches of another shape than they should have.
    """
    with tempfile.TemporaryDirectory(prefix="astroclip-s3-stream-") as scratch:
        reader = READERS[job.reader](job, scratch)
        first_fluxes = []
        gc.collect()
        gc.freeze()  # what the imports left behind is not looked through again while the clock runs
        cpu, began = _cpu_seconds(), time.perf_counter()
        for images, spectra in reader():
            if images.shape[1:] != (3, 152, 152) or spectra.shape != (len(images), 7781):
                raise RuntimeError(f"{job.reader}: batches of {tuple(images.shape)} and {tuple(spectra.shape)}")
            first_fluxes.append(np.array(spectra[:, 0]))
        took = time.perf_counter() - began
        gc.collect()  # the CPU of workers is known when they have ended, with the last reference to their loader
        cpu = _cpu_seconds() - cpu
    if job.reader == "raw_gets":
        return Measured(job.samples, took, cpu, "")
    galaxies = np.concatenate(first_fluxes)
    return Measured(len(galaxies), took, cpu, digest(galaxies))


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _bucket(url: str) -> S3Store:
    return S3Store(urlsplit(url).netloc, client_options={"allow_http": True})


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(read(Job(**json.load(sys.stdin))))))
