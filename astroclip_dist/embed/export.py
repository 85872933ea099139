"""Embeddings of a dataset as Parquet: shard by shard, in one process, with where they came from."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from astroclip_dist.config import RunConfig
from astroclip_dist.data.ordering.order import Piece
from astroclip_dist.data.reading.reader import load_piece
from astroclip_dist.data.stored.dataset import Dataset, Shard
from astroclip_dist.data.stored.manifest import Split
from astroclip_dist.data.streaming.filling import read_samples
from astroclip_dist.embed.embedder import Embedder, load_embedder
from astroclip_dist.embed.table import (
    MANIFEST_NAME,
    MODALITIES,
    PLACE_COLUMNS,
    EmbeddingManifest,
    Part,
    as_column,
    embedding_column,
)
from astroclip_dist.errors import DataError
from astroclip_dist.progress import with_progress
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import read_checkpoint_manifest, resolve_checkpoint
from astroclip_dist.train.run_folder import read_run_config
from astroclip_dist.train.tracking import Tracker

ROWS_A_PART = 8192
_READING_THREADS = 2
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Chunk:
    """Consecutive samples of one shard, read and ready to be embedded."""

    shard: Shard
    first_row: int
    keys: list[str]
    metadata: list[dict[str, Any]]
    present: dict[str, np.ndarray]
    members: dict[str, Tensor]


def export_embeddings(
    checkpoint_url: str,
    dataset_urls: Sequence[str],
    out_url: str,
    *,
    splits: Sequence[Split],
    batch_size: int,
    device: torch.device,
) -> EmbeddingManifest:
    """Embed every galaxy of some datasets and write the folder that search and evaluation read.

    Args:
        checkpoint_url: a run (its newest checkpoint) or one checkpoint.
        out_url: a folder without embeddings; ``manifest.json`` is written last.
        batch_size: galaxies in one pass.

    Raises:
        UserError: no checkpoint, no dataset, embeddings there already, layouts that the model cannot take.
    """
    run, checkpoint = resolve_checkpoint(checkpoint_url)
    config = read_run_config(run)
    dataset = Dataset.open(dataset_urls, splits)
    out = Store(out_url)
    if out.exists(MANIFEST_NAME):
        raise DataError(out.locate(MANIFEST_NAME), "there already", "Choose another folder, or remove the embeddings.")
    embedder = load_embedder(config.objective, dataset, checkpoint, device)
    parts = [
        _write_part(out, f"part-{number:05d}.parquet", table)
        for number, table in enumerate(_tables(embedder, dataset, batch_size, device))
    ]
    manifest = EmbeddingManifest(
        checkpoint=checkpoint.url,
        dataset=dataset.urls,
        run={"url": run.url, "step": read_checkpoint_manifest(checkpoint)["step"], "splits": list(splits)},
        objective=config.objective.name,
        sizes=embedder.sizes,
        rows=sum(part.rows for part in parts),
        parts=tuple(parts),
    )
    out.put(MANIFEST_NAME, manifest.model_dump_json(indent=1).encode())
    _track(config, run, out, manifest)
    return manifest


def _tables(embedder: Embedder, dataset: Dataset, batch_size: int, device: torch.device) -> Iterator[pa.Table]:
    """Parts of about ``ROWS_A_PART`` galaxies."""
    chunks = with_progress(
        _chunks(dataset, embedder.members, batch_size),
        total=sum(-(-shard.entry.samples // batch_size) for shard in dataset.shards),
        unit=f"batches of {batch_size}",
    )
    waiting: list[pa.Table] = []
    for chunk in chunks:
        waiting.append(_embed(embedder, chunk, device))
        if sum(table.num_rows for table in waiting) >= ROWS_A_PART:
            yield pa.concat_tables(waiting, promote_options="permissive")
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting, promote_options="permissive")


def _chunks(dataset: Dataset, members: Sequence[str], batch_size: int) -> Iterator[_Chunk]:
    """The whole dataset in the order of its shards; the next chunk is read while one is embedded."""
    pieces = [
        (shard, Piece(number, first, min(first + batch_size, shard.entry.samples)))
        for number, shard in enumerate(dataset.shards)
        for first in range(0, shard.entry.samples, batch_size)
    ]
    with ThreadPoolExecutor(1, "read") as ahead, ThreadPoolExecutor(_READING_THREADS, "fill") as pool:
        following: Future[_Chunk] | None = None
        for at, _ in enumerate(pieces):
            chunk = following or ahead.submit(_read, dataset, *pieces[at], members, pool)
            if at + 1 < len(pieces):
                following = ahead.submit(_read, dataset, *pieces[at + 1], members, pool)
            yield chunk.result()


def _read(dataset: Dataset, shard: Shard, piece: Piece, members: Sequence[str], pool: ThreadPoolExecutor) -> _Chunk:
    loaded = load_piece(shard, piece, (*members, "json"))
    rows = range(piece.start, piece.stop)
    present = {m: loaded.index.members[m].offset[piece.start : piece.stop] >= 0 for m in members}
    tensors: dict[str, Tensor] = {}
    for member in members:
        there = [row for row, is_there in zip(rows, present[member], strict=True) if is_there]
        if there:
            tensors |= read_samples(loaded, there, dataset, [member], pool)
    return _Chunk(
        shard,
        piece.start,
        list(loaded.index.keys[piece.start : piece.stop]),
        [json.loads(loaded.read_json(row)) for row in rows],
        present,
        tensors,
    )


def _embed(embedder: Embedder, chunk: _Chunk, device: torch.device) -> pa.Table:
    images, spectra, ivar = (
        chunk.members[m].to(device, non_blocking=True) if m in chunk.members else None for m in (*MODALITIES, "ivar")
    )
    vectors = embedder(images, spectra, ivar)
    columns: dict[str, pa.Array] = {
        "key": pa.array(chunk.keys, pa.string()),
        "split": pa.array([chunk.shard.entry.split] * len(chunk.keys), pa.string()),
        "dataset": pa.array([chunk.shard.dataset] * len(chunk.keys), pa.int32()),
        "shard": pa.array([chunk.shard.entry.name] * len(chunk.keys), pa.string()),
        "row": pa.array(range(chunk.first_row, chunk.first_row + len(chunk.keys)), pa.int32()),
    }
    for modality, size in embedder.sizes.items():
        matrix = np.full((len(chunk.keys), size), np.nan, np.float32)
        if modality in vectors:
            matrix[chunk.present[modality]] = vectors[modality].cpu().numpy()
            _leave_out_not_finite(matrix, modality, chunk)
        columns[embedding_column(modality)] = as_column(matrix)
    return pa.table(columns | _metadata_columns(chunk.metadata))


def _leave_out_not_finite(matrix: np.ndarray, modality: str, chunk: _Chunk) -> None:
    """A galaxy whose values the encoder cannot bear gets no embedding of that modality: null, and a warning."""
    bad = np.flatnonzero(chunk.present[modality] & ~np.isfinite(matrix).all(axis=1))
    matrix[bad] = np.nan
    for row in bad:
        log.warning(
            "%s of galaxy %s (%s): its embedding is not finite and left out", modality, chunk.keys[row], chunk.shard.url
        )


def _metadata_columns(metadata: Sequence[dict[str, Any]]) -> dict[str, pa.Array]:
    """One column for each scalar that any of the galaxies has; null where one lacks it."""
    names = sorted(
        {
            name
            for galaxy in metadata
            for name, value in galaxy.items()
            if isinstance(value, str | int | float) and name not in PLACE_COLUMNS
        }
    )
    return {name: pa.array([galaxy.get(name) for galaxy in metadata]) for name in names}


def _write_part(out: Store, name: str, table: pa.Table) -> Part:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    data = sink.getvalue()
    out.put(name, data)
    return Part(name=name, rows=table.num_rows, sha256=hashlib.sha256(data).hexdigest())


def _track(config: RunConfig, run: Store, out: Store, manifest: EmbeddingManifest) -> None:
    """One MLflow run for the export, below the run that trained the model."""
    tracker = Tracker.open(
        out, config.tracking_uri(), config.tracking.experiment, f"embed {out.url.rsplit('/', 1)[-1]}"
    )
    parent = json.loads(run.read("tracking.json"))["run_id"] if run.exists("tracking.json") else None
    tracker.set_tags(
        {
            "checkpoint": manifest.checkpoint,
            "embeddings": out.url,
            "datasets": ", ".join(manifest.dataset),
            **({"mlflow.parentRunId": parent} if parent else {}),
        }
    )
    tracker.log_metrics(0, {"embedded_galaxies": manifest.rows})
    tracker.log_artifact("embeddings-manifest.json", out.read(MANIFEST_NAME))
    tracker.close()
