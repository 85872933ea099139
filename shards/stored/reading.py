"""Read samples of a dataset one by one, through the index: for people and checks, not for training."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import numpy as np
from isal import isal_zlib

from astroclip_dist.data.stored import npy
from astroclip_dist.data.stored.index import ARRAY_MEMBERS, MEMBERS, ShardIndex, decode_index
from astroclip_dist.data.stored.manifest import Manifest
from astroclip_dist.errors import DataError
from astroclip_dist.store import Store
from shards.sample import Sample


def decode_array(content: bytes | memoryview, where: str) -> np.ndarray:
    """Parse a .npy file that holds plain numbers.

    Raises:
        DataError: not such a file, or one with pickled objects.
    """
    try:
        return npy.decode(content)
    except ValueError as error:
        raise DataError(where, f"not a plain .npy array ({error})", "Build the dataset again.") from error


def read_sample(store: Store, shard: str, index: ShardIndex, row: int) -> Sample:
    """One sample, its bytes compared with the index.

    Raises:
        DataError: bytes that differ from the index, or that do not parse.
        StorageError: the shard cannot be read.
    """
    key = index.keys[row]
    members: dict[str, Any] = {}
    for member in MEMBERS:
        table = index.members[member]
        start, length = int(table.offset[row]), int(table.length[row])
        if start < 0:
            continue
        where = f"{store.locate(shard + '.tar')}: {key}.{member}"
        content = store.read_range(f"{shard}.tar", start, start + length)
        if isal_zlib.crc32(content) != int(table.crc32[row]):
            raise DataError(where, "bytes differ from the index", "Run `astroclip shards verify` on the dataset.")
        members[member] = decode_array(content, where) if member in ARRAY_MEMBERS else json.loads(bytes(content))
    return Sample(key, metadata=members.pop("json", {}), **members)


def first_samples(store: Store, manifest: Manifest, count: int) -> list[Sample]:
    """The first samples of a dataset, from as few shards as hold them."""

    def each() -> Any:
        for entry in manifest.shards:
            index = decode_index(store.read(f"{entry.name}.idx"), store.locate(f"{entry.name}.idx"))
            yield from (read_sample(store, entry.name, index, row) for row in range(len(index)))

    return list(islice(each(), count))
