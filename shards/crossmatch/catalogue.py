"""The catalogue of a dataset: where each galaxy lies on the sky and in the shards, read from its ``KEY.json`` alone."""

from __future__ import annotations

import json
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from isal import isal_zlib

from astroclip_dist.data.stored.dataset import Dataset, Shard
from astroclip_dist.data.stored.index import ShardIndex
from astroclip_dist.data.stored.manifest import SPLITS
from astroclip_dist.errors import DataError
from astroclip_dist.progress import with_progress
from shards.crossmatch.files import put_file
from shards.crossmatch.table import DATASET_URL

# Names in a sample's metadata, the first that is there counts.
_IDENTIFIERS = {
    "targetid": ("targetid",),
    "release": ("release",),
    "brickid": ("brickid",),
    "objid": ("objid", "brick_objid"),
}
_NUMBERS = {
    "ra": ("ra",),
    "dec": ("dec",),
    "epoch": ("epoch", "ref_epoch"),
    "pmra": ("pmra",),
    "pmdec": ("pmdec",),
}
_READ = {name: (sources, pa.float64()) for name, sources in _NUMBERS.items()} | {
    name: (sources, pa.int64()) for name, sources in _IDENTIFIERS.items()
}
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        *((name, kind) for name, (_, kind) in _READ.items()),
        ("dataset", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),
        ("row", pa.int32()),
    ]
)
_ROW_GROUP = 1 << 17
THREADS = 16


def write_catalogue(
    dataset_url: str, out_url: str, *, threads: int = THREADS, progress: TextIO | None = None
) -> dict[str, Any]:
    """Write the catalogue of all splits of a dataset as Parquet, in the order of its shards and rows.

    Columns: ``key``; ``ra``, ``dec`` (deg), ``epoch`` (Julian year), ``pmra``, ``pmdec`` (mas/yr), ``targetid``,
    ``release``, ``brickid``, ``objid``, null where the galaxy's metadata lack them; ``dataset``, ``split``, ``shard``,
    ``row``: where it lies. Held in memory are a few shards' rows, however many the dataset has.

    Returns:
        ``galaxies``, ``shards``, and how many galaxies are ``without_position``.

    Raises:
        DataError: the dataset or one of its json members is damaged.
        CredentialsError, StorageError
    """
    dataset = Dataset.open([dataset_url], SPLITS)
    url = dataset.urls[0]
    galaxies = without_position = 0
    schema = SCHEMA.with_metadata({DATASET_URL: url.encode()})
    with tempfile.TemporaryDirectory(prefix="astroclip-catalogue-") as folder:
        file = Path(folder) / "catalogue.parquet"
        with pq.ParquetWriter(file, schema) as writer:
            waiting: list[pa.Table] = []
            for table in with_progress(_tables(dataset, threads), len(dataset.shards), "shards", progress):
                galaxies += table.num_rows
                without_position += max(table.column("ra").null_count, table.column("dec").null_count)
                waiting.append(table)
                if sum(map(len, waiting)) >= _ROW_GROUP:
                    writer.write_table(pa.concat_tables(waiting).cast(schema))
                    waiting = []
            if waiting:
                writer.write_table(pa.concat_tables(waiting).cast(schema))
        put_file(out_url, file)
    return {"galaxies": galaxies, "shards": len(dataset.shards), "without_position": without_position}


def _tables(dataset: Dataset, threads: int) -> Iterator[pa.Table]:
    """The rows of each shard, in order, a few shards ahead."""
    with ThreadPoolExecutor(threads, "catalogue") as pool:
        ahead: deque[Future[pa.Table]] = deque()
        try:
            for shard in dataset.shards:
                ahead.append(pool.submit(_table, shard))
                if len(ahead) > 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for task in ahead:
                task.cancel()


def _table(shard: Shard) -> pa.Table:
    index = shard.read_index()
    metadata = [_read_json(shard, index, row) for row in range(len(index))]
    columns: dict[str, Any] = {"key": list(index.keys)}
    for name, (sources, kind) in _READ.items():
        values = [next((found[source] for source in sources if source in found), None) for found in metadata]
        columns[name] = _as_column(values, kind, shard, index, sources[0])
    for name, value in (("dataset", shard.store.url), ("split", shard.entry.split), ("shard", shard.entry.name)):
        columns[name] = [value] * len(index)
    columns["row"] = range(len(index))
    return pa.table(columns, schema=SCHEMA)


def _as_column(values: list[Any], kind: pa.DataType, shard: Shard, index: ShardIndex, name: str) -> pa.Array:
    """Numbers as a column.

    Raises:
        DataError: one is something else.
    """
    wanted: tuple[type, ...] = (int,) if pa.types.is_integer(kind) else (int, float)
    for row, value in enumerate(values):
        if value is not None and (not isinstance(value, wanted) or isinstance(value, bool)):
            raise DataError(
                f"{shard.url}: sample {index.keys[row]}: {name}", repr(value), f"It must be of kind {kind} there."
            )
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, OverflowError) as error:
        raise DataError(f"{shard.url}: {name}", error, f"It must fit into {kind}.") from error


def _read_json(shard: Shard, index: ShardIndex, row: int) -> dict[str, Any]:
    members = index.members["json"]
    start, length = int(members.offset[row]), int(members.length[row])
    if start < 0:
        return {}
    content = shard.store.read_range(shard.tar_name, start, start + length)
    where = f"{shard.url}: {index.keys[row]}.json"
    if isal_zlib.crc32(content) != int(members.crc32[row]):
        raise DataError(where, "bytes differ from the index", "Run `astroclip shards verify` on the dataset.")
    try:
        metadata = json.loads(bytes(content))
    except ValueError as error:
        raise DataError(where, "not JSON", "Run `astroclip shards verify` on the dataset.") from error
    if not isinstance(metadata, dict):
        raise DataError(where, type(metadata).__name__, "It holds one object: build the dataset again.")
    return metadata
