"""Similarity search: the galaxies whose embeddings have the largest cosine with a query's, in one modality or across.

Exact, in chunks, by matrix products: memory stays bounded, and the same code runs on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from astroclip_dist.embed.table import (
    PLACE_COLUMNS,
    EmbeddingFolder,
    Modality,
    as_matrix,
    embedding_column,
)
from astroclip_dist.errors import ConfigError, DataError

QUERY_ROWS, GALLERY_ROWS = 512, 32768


def top_k(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of the gallery with the largest inner product, best first; of equal ones the earlier row first.

    Args:
        queries: (q, D); gallery: (n, D), same dtype and device; rows of NaN are never found.
        k: at most n are returned.

    Returns:
        (q, min(k, n)) products and (q, min(k, n)) int64 rows.
    """
    k = min(k, len(gallery))
    found = [
        _top_k_of_chunk(queries[first : first + QUERY_ROWS], gallery, k) for first in range(0, len(queries), QUERY_ROWS)
    ]
    if not found:
        return queries.new_empty(0, k), torch.empty(0, k, dtype=torch.int64, device=queries.device)
    scores, rows = zip(*found, strict=True)
    return torch.cat(scores), torch.cat(rows)


def _top_k_of_chunk(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best_scores = queries.new_empty(len(queries), 0)
    best_rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for first in range(0, len(gallery), GALLERY_ROWS):
        scores = (queries @ gallery[first : first + GALLERY_ROWS].T).nan_to_num(nan=-torch.inf)
        scores, rows = scores.topk(min(k, scores.shape[1]), dim=1)
        best_scores, best_rows = merge((best_scores, best_rows), (scores, rows + first), k)
    return best_scores, best_rows


def merge(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k best of two lists of (scores, rows)."""
    scores, rows = torch.cat([one[0], other[0]], dim=1), torch.cat([one[1], other[1]], dim=1)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return scores[:, :k], rows.gather(1, order)[:, :k]


@dataclass(frozen=True)
class Neighbour:
    """A galaxy found; ``galaxy`` has its place and the scalars of its metadata."""

    cosine: float
    galaxy: dict[str, Any]


def find_vector(folder: EmbeddingFolder, key: str, modality: Modality) -> np.ndarray:
    """The embedding of a galaxy, (D,) float32.

    Raises:
        DataError: no such galaxy, or it lacks the modality.
    """
    folder.require(modality)
    for table in folder.parts(["key", embedding_column(modality)]):
        for row in np.flatnonzero(table.column("key").to_numpy(zero_copy_only=False) == key):
            vector = as_matrix(table, modality, folder)[row]
            if np.isnan(vector[0]):
                raise DataError(f"galaxy {key}", f"has no {modality}", "Query by its other modality.")
            return vector
    raise DataError(f"galaxy {key}", "not among the embeddings", f"Check the key; searched was {folder.store.url}.")


def nearest(
    folder: EmbeddingFolder, vector: np.ndarray, among: Modality, k: int, leave_out: str = ""
) -> list[Neighbour]:
    """The k galaxies whose embedding is most like a vector, best first. Memory holds one part at a time.

    Args:
        vector: (D,); its length does not matter.
        leave_out: key of a galaxy that is not an answer (the query itself).

    Raises:
        ConfigError: a vector of another size, or without a direction; k < 1.
        DataError: the embeddings lack the modality, or are damaged.
    """
    folder.require(among)
    size = folder.manifest.sizes[among]
    norm = np.linalg.norm(vector)
    if vector.shape != (size,) or not np.isfinite(norm) or norm == 0:
        raise ConfigError(
            "query vector", f"shape {vector.shape}, length {norm}", f"Give {size} finite numbers, not all 0."
        )
    if k < 1:
        raise ConfigError("k", k, "Ask for at least one galaxy.")
    query = torch.from_numpy((vector / norm).astype(np.float32))[None]
    found: list[Neighbour] = []
    for table in folder.parts():
        matrix = as_matrix(table, among, folder)
        matrix[table.column("key").to_numpy(zero_copy_only=False) == leave_out] = np.nan
        scores, rows = top_k(query, torch.from_numpy(matrix), k)
        galaxies = table.select([name for name in table.column_names if not name.endswith("_embedding")])
        found += [
            Neighbour(float(score), galaxies.slice(int(row), 1).to_pylist()[0])
            for score, row in zip(scores[0], rows[0], strict=True)
            if score > -torch.inf
        ]
        found = sorted(found, key=lambda neighbour: -neighbour.cosine)[:k]
    return found


def format_neighbours(neighbours: list[Neighbour]) -> str:
    """A table for people: cosine, place, redshift."""
    fields = [*PLACE_COLUMNS, *(["redshift"] if any("redshift" in n.galaxy for n in neighbours) else [])]
    lines = [["", "cosine", *fields]]
    for rank, neighbour in enumerate(neighbours, 1):
        values = [neighbour.galaxy.get(field) for field in fields]
        cells = [
            "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value) for value in values
        ]
        lines.append([str(rank), f"{neighbour.cosine:.4f}", *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
