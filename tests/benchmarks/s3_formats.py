"""The same galaxies in each reader's own format on S3, for ``s3_stream``.

python -m tests.benchmarks.s3_formats FORMAT URL SAMPLES FOLDER     # FOLDER: room for files on the way
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.store import Store
from shards.writing.writer import ShardWriter
from tests.benchmarks.peers import without_unused_packages
from tests.random_survey import random_sample

SAMPLES_PER_SHARD = 32  # 10 MB; what is fetched ahead at the end, of an epoch that is not read, stays small
CHUNK_BYTES = 64 << 20  # the peers' default
IMAGE, SPECTRUM = ImageLayout(), SpectrumLayout()


def galaxy(number: int) -> dict[str, np.ndarray]:
    """image (3, 152, 152) and spectrum (7781,), float32."""
    sample = random_sample(f"random-{number}", IMAGE, SPECTRUM)
    assert sample.image is not None
    assert sample.spectrum is not None
    return {"image": sample.image, "spectrum": sample.spectrum}


def write_ours(url: str, samples: int, folder: Path) -> None:
    with ShardWriter(
        url,
        IMAGE,
        SPECTRUM,
        False,
        {"kind": "random"},
        samples_per_shard=SAMPLES_PER_SHARD,
        split_fractions={"train": 1.0},
    ) as writer:
        for number in range(samples):
            sample = random_sample(f"random-{number}", IMAGE, SPECTRUM)
            sample.ivar = None
            writer.add(sample)
        writer.finish()


def write_streaming(url: str, samples: int, folder: Path) -> None:
    without_unused_packages()
    columns = {"image": "ndarray:float32:3,152,152", "spectrum": f"ndarray:float32:{SPECTRUM.size}"}
    with import_module("streaming").MDSWriter(out=str(folder), columns=columns, size_limit=CHUNK_BYTES) as writer:
        for number in range(samples):
            writer.write(galaxy(number))
    _upload(folder, url)


def _tensors(number: int) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in galaxy(number).items()}


def write_litdata(url: str, samples: int, folder: Path) -> None:
    import_module("litdata").optimize(
        _tensors, list(range(samples)), str(folder), chunk_bytes=CHUNK_BYTES, num_workers=1, verbose=False
    )
    _upload(folder, url)


def _upload(folder: Path, url: str) -> None:
    store = Store(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put(str(path.relative_to(folder)), path)


FORMATS: dict[str, Callable[[str, int, Path], None]] = {
    "ours": write_ours,
    "streaming": write_streaming,
    "litdata": write_litdata,
}

if __name__ == "__main__":
    FORMATS[sys.argv[1]](sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
