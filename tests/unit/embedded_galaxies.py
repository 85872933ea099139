"""Small datasets and embeddings with known answers, for the tests of search and evaluation."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.embed.table import MODALITIES, as_column, embedding_column
from astroclip_dist.store import Store
from shards.sample import Sample
from shards.writing.writer import ShardWriter

IMAGE, SPECTRUM = ImageLayout(size=48), SpectrumLayout(size=500, step_angstrom=12.4)


def write_dataset(url: str, galaxies: int, seed: int = 0, train: float = 0.7) -> list[dict[str, object]]:
    """Galaxies that redden, shrink and have their lines moved with redshift; returns their places and metadata."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:48, :48] - 23.5
    wavelength = SPECTRUM.start_angstrom + SPECTRUM.step_angstrom * np.arange(SPECTRUM.size)
    with ShardWriter(
        url, IMAGE, SPECTRUM, False, {"name": "drawn"}, samples_per_shard=64,
        split_fractions={"train": train, "val": 0.0, "test": 1 - train},
    ) as writer:  # fmt: skip
        for number in range(galaxies):
            z = float(rng.uniform(0.02, 0.6))
            q, angle = rng.uniform(0.3, 1), rng.uniform(0, np.pi)
            u, v = xx * np.cos(angle) + yy * np.sin(angle), yy * np.cos(angle) - xx * np.sin(angle)
            profile = np.exp(-np.hypot(u, v / q) / (2.5 + 1.2 / (z + 0.1)))
            colour = np.array([1 - z, 1.0, 1 + z])[:, None, None] * rng.uniform(0.5, 2)
            image = colour * profile + rng.normal(0, 0.01, (3, 48, 48))
            flux = 1 + sum(3 * np.exp(-(((wavelength - line * (1 + z)) / 25) ** 2)) for line in (3728, 5008, 6564))
            magnitudes = 22.5 - 2.5 * np.log10(image.clip(1e-6).sum(axis=(1, 2))) + rng.normal(0, 0.03, 3)
            metadata = {"redshift": z, **dict(zip(("mag_g", "mag_r", "mag_z"), map(float, magnitudes), strict=True))}
            writer.add(
                Sample(
                    f"G{number:05d}",
                    image.astype(np.float32),
                    (flux + rng.normal(0, 0.2, SPECTRUM.size)).astype(np.float32),
                    metadata={**metadata, "morphology": "spiral" if q < 0.6 else "smooth"},
                )
            )
        manifest = writer.finish()
    rows: list[dict[str, object]] = []
    for entry in manifest.shards:
        index = _read_keys(Store(url), entry.name)
        for row, (key, metadata) in enumerate(index):
            rows.append({"key": key, "split": entry.split, "dataset": 0, "shard": entry.name, "row": row, **metadata})
    return rows


def _read_keys(store: Store, shard: str) -> list[tuple[str, dict[str, object]]]:
    with tarfile.open(fileobj=io.BytesIO(store.read(f"{shard}.tar"))) as tar:
        return [
            (member.name.removesuffix(".json"), json.load(tar.extractfile(member)))  # type: ignore[arg-type]
            for member in tar
            if member.name.endswith(".json")
        ]


def write_embeddings(
    folder: Path,
    rows: Sequence[dict[str, object]],
    vectors: dict[str, np.ndarray],
    datasets: Sequence[str] = (),
    part_rows: int = 100,
    objective: str = "clip",
) -> str:
    """A folder as ``astroclip embed`` writes it; NaN vectors become null. Returns its URL."""
    store = Store(folder)
    parts = []
    for number, first in enumerate(range(0, len(rows), part_rows)):
        table = pa.Table.from_pylist(list(rows[first : first + part_rows]))
        for name, kind in (("dataset", pa.int32()), ("row", pa.int32())):
            table = table.set_column(table.column_names.index(name), name, table.column(name).cast(kind))
        for modality, matrix in vectors.items():
            table = table.append_column(embedding_column(modality), as_column(matrix[first : first + part_rows]))  # type: ignore[arg-type]
        sink = io.BytesIO()
        pq.write_table(table, sink)
        name = f"part-{number:05d}.parquet"
        store.put(name, sink.getvalue())
        parts.append({"name": name, "rows": len(table), "sha256": hashlib.sha256(sink.getvalue()).hexdigest()})
    manifest = {
        "schema_version": 2,
        "checkpoint": "file:///runs/x/checkpoints/step-000000100",
        "dataset": list(datasets),
        "run": {"url": "file:///runs/x", "step": 100},
        "objective": objective,
        "sizes": {modality: vectors[modality].shape[1] for modality in MODALITIES if modality in vectors},
        "rows": len(rows),
        "parts": parts,
    }
    store.put("manifest.json", json.dumps(manifest).encode())
    return store.url


def redshift_vectors(redshift: np.ndarray, noise: float, size: int = 32, seed: int = 1) -> np.ndarray:
    """(n, size) float32 unit vectors on a curve along redshift, with noise across it: a good encoder's."""
    phases = np.linspace(0, 2 * np.pi, size, endpoint=False)
    curve = np.cos(redshift[:, None] * np.arange(1, size + 1) * 1.5 + phases)
    vectors = curve + np.random.default_rng(seed).normal(0, noise, (len(redshift), size))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
