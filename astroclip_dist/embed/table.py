"""A folder of embeddings: Parquet parts and, written last, ``manifest.json`` with a hash of each part.

Columns of a part: ``key``, ``split`` (string); ``dataset`` (int32, number in the manifest's list), ``shard`` (string),
``row`` (int32): where the sample lies; ``image_embedding``, ``spectrum_embedding`` (list of D float32, unit norm
whatever the objective, null where the galaxy lacks the modality); and one column for each scalar of the samples'
metadata.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from astroclip_dist.errors import DataError
from astroclip_dist.store import MissingObjectError, Store

MANIFEST_NAME = "manifest.json"
PLACE_COLUMNS = ("key", "split", "dataset", "shard", "row")
Modality = Literal["image", "spectrum"]
MODALITIES: tuple[Modality, ...] = ("image", "spectrum")
_MEND = "Embed the dataset again (astroclip embed)."


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(_Strict):
    name: str
    rows: int
    sha256: str


class EmbeddingManifest(_Strict):
    """What a folder of embeddings holds and what made it.

    Attributes:
        objective: name of the objective that trained the encoders; only ``clip`` puts both modalities into one space.
        sizes: numbers in an embedding of each modality that there is.
    """

    schema_version: Literal[2] = 2
    checkpoint: str
    dataset: tuple[str, ...]
    run: dict[str, Any]
    objective: str
    sizes: dict[Modality, int]
    rows: int
    parts: tuple[Part, ...]

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return tuple(modality for modality in MODALITIES if modality in self.sizes)


def embedding_column(modality: Modality) -> str:
    return f"{modality}_embedding"


class EmbeddingFolder:
    """Reads embeddings part by part, each checked against its hash and row count.

    Raises:
        DataError: no manifest (the export has not ended, or there is none), or a wrong one.
        CredentialsError, StorageError
    """

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self.store.check()
        where = self.store.locate(MANIFEST_NAME)
        try:
            text = self.store.read(MANIFEST_NAME)
        except MissingObjectError as error:
            raise DataError(
                where, "not there", "No embeddings, or an export that has not ended: check the URL, or embed again."
            ) from error
        try:
            self.manifest = EmbeddingManifest.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "the file"
            raise DataError(f"{where}: {field}", repr(first.get("input"))[:80], f"{first['msg']}. {_MEND}") from error
        total = sum(part.rows for part in self.manifest.parts)
        if total != self.manifest.rows:
            raise DataError(f"{where}: rows", self.manifest.rows, f"Its parts have {total}. {_MEND}")

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The parts in order; with ``columns``, only those.

        Raises:
            DataError: a part is missing, damaged, or lacks a column.
        """
        for part in self.manifest.parts:
            where = self.store.locate(part.name)
            try:
                data = self.store.read(part.name)
            except MissingObjectError as error:
                raise DataError(where, "missing, but the manifest names it", _MEND) from error
            if hashlib.sha256(data).hexdigest() != part.sha256:
                raise DataError(where, "damaged: its sha256 is not the manifest's", _MEND)
            file = pq.ParquetFile(pa.BufferReader(data))
            for column in columns or ():
                if column not in file.schema_arrow.names:
                    raise DataError(
                        f"{where}: column {column}", "absent", f"It has {', '.join(file.schema_arrow.names)}."
                    )
            table = file.read(columns=list(columns) if columns is not None else None)
            if table.num_rows != part.rows:
                raise DataError(where, f"{table.num_rows} rows; the manifest says {part.rows}", _MEND)
            yield table

    def require(self, modality: Modality) -> None:
        """Raises:
        DataError: the embeddings have no such modality.
        """
        if modality not in self.manifest.modalities:
            raise DataError(
                f"{self.store.url}: {modality} embeddings",
                "absent",
                f"There are {', '.join(self.manifest.modalities)}.",
            )


@dataclass(frozen=True)
class EmbeddingTable:
    """All embeddings of a folder in memory: for up to some millions of galaxies.

    Attributes:
        columns: everything but the embeddings.
        embeddings: modality -> (rows, D) float32, unit norm; NaN where the galaxy lacks the modality.
    """

    url: str
    manifest: EmbeddingManifest
    columns: pa.Table
    embeddings: dict[Modality, np.ndarray]

    @classmethod
    def read(cls, url: str) -> EmbeddingTable:
        """Read a folder of embeddings whole.

        Raises:
            DataError, CredentialsError, StorageError
        """
        folder = EmbeddingFolder(url)
        # Metadata fields that some galaxies lack may be missing from a part altogether.
        tables = list(folder.parts())
        if not tables:
            raise DataError(folder.store.url, "no embeddings", _MEND)
        names = [embedding_column(modality) for modality in MODALITIES]
        embeddings = {
            modality: np.concatenate([as_matrix(table, modality, folder) for table in tables])
            for modality in folder.manifest.modalities
        }
        rest = [table.drop_columns([name for name in names if name in table.column_names]) for table in tables]
        try:
            columns = pa.concat_tables(rest, promote_options="permissive")
        except pa.ArrowTypeError as error:
            raise DataError(folder.store.url, f"parts with different columns: {error}", _MEND) from error
        return cls(folder.store.url, folder.manifest, columns, embeddings)

    def __len__(self) -> int:
        return self.columns.num_rows

    def strings(self, name: str) -> np.ndarray:
        """(rows,) object array of a text column."""
        return self._column(name).to_numpy(zero_copy_only=False)

    def numbers(self, name: str) -> np.ndarray:
        """(rows,) float64 of a numeric column; NaN where a galaxy lacks the value.

        Raises:
            DataError: no such column, or not a number.
        """
        column = self._column(name)
        try:
            return column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid as error:
            raise DataError(f"{self.url}: column {name}", column.type, "It is not a number.") from error

    def has(self, modality: Modality) -> np.ndarray:
        """(rows,) bool: which galaxies have an embedding of this modality."""
        if modality not in self.embeddings:
            return np.zeros(len(self), bool)
        return ~np.isnan(self.embeddings[modality][:, 0])

    def _column(self, name: str) -> pa.ChunkedArray:
        if name not in self.columns.column_names:
            raise DataError(
                f"{self.url}: column {name}", "absent", f"The galaxies have {', '.join(self.columns.column_names)}."
            )
        return self.columns.column(name)


def as_column(matrix: np.ndarray) -> pa.ListArray:
    """(rows, D) float32 as a column of a part; rows of NaN become null.

    Not a fixed-size list: Arrow cannot read such a column back from Parquet where it has nulls.
    """
    present = ~np.isnan(matrix[:, 0])
    offsets = np.concatenate([[0], np.cumsum(present * matrix.shape[1])]).astype(np.int32)
    values = pa.array(matrix[present].ravel(), pa.float32())
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(~present))


def as_matrix(table: pa.Table, modality: Modality, folder: EmbeddingFolder) -> np.ndarray:
    """The embeddings of a part as (rows, D) float32; NaN rows where null.

    Raises:
        DataError: of another type or size than the manifest says, or with values that are not finite.
    """
    size = folder.manifest.sizes[modality]
    name = embedding_column(modality)
    where = f"{folder.store.url}: {name}"
    if name not in table.column_names:
        raise DataError(where, "absent", _MEND)
    column = table.column(name).combine_chunks()
    if column.type != pa.list_(pa.float32()):
        raise DataError(where, column.type, f"Expected are lists of {size} float32. {_MEND}")
    present = ~column.is_null().to_numpy(zero_copy_only=False)
    lengths = column.drop_null().value_lengths().to_numpy()
    if (lengths != size).any():
        raise DataError(where, f"lists of {lengths[lengths != size][0]} values", f"Expected are {size}. {_MEND}")
    matrix = np.full((len(column), size), np.nan, np.float32)
    matrix[present] = column.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
    if not np.isfinite(matrix[present]).all():
        raise DataError(where, "values that are not finite", _MEND)
    return matrix
