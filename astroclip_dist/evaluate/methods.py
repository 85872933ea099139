"""What is compared: embeddings of one modality from one run, or magnitudes, each a row of numbers a galaxy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from astroclip_dist.embed.table import EmbeddingTable, Modality
from astroclip_dist.errors import ConfigError, DataError
from astroclip_dist.evaluate.photometry import colours_and_magnitude

MAGNITUDES = "magnitudes"
PLURAL: dict[Modality, str] = {"image": "images", "spectrum": "spectra"}


@dataclass(frozen=True)
class Method:
    """One way to see the galaxies of the evaluated table.

    Attributes:
        key: its name in ``results.json``; title: for people.
        features: (galaxies, D), in the order of the evaluated table; NaN rows where a galaxy has none.
        modality: None for magnitudes.
        evaluated: whether the report is about these; others are there to compare.
        aligned: whether the embeddings come from a contrastive alignment.
    """

    key: str
    title: str
    features: np.ndarray
    modality: Modality | None = None
    evaluated: bool = False
    aligned: bool = False


def collect_methods(table: EmbeddingTable, others: Sequence[tuple[str, EmbeddingTable]]) -> list[Method]:
    """Magnitudes where the catalogue has them, then for each modality the other embeddings and the evaluated ones.

    Args:
        others: (name, embeddings) to compare with.

    Raises:
        DataError: other embeddings lack galaxies of the table, or hold one twice.
        ConfigError: a name that something else has.
    """
    methods = []
    magnitudes = colours_and_magnitude(table)
    if magnitudes is not None and np.isfinite(magnitudes).all(axis=1).any():
        methods.append(Method(MAGNITUDES, "g, r, z magnitudes", magnitudes))
    aligned = table.manifest.objective == "clip"
    rows = [(name, other, rows_of(other, table)) for name, other in others]
    for modality in PLURAL:
        for name, other, places in rows:
            if other.has(modality).any():
                one = len(other.embeddings) == 1
                methods.append(
                    Method(
                        name if one else f"{name} {modality}",
                        name if one else f"{name}, {PLURAL[modality]}",
                        other.embeddings[modality][places],
                        modality,
                        aligned=other.manifest.objective == "clip",
                    )
                )
        if table.has(modality).any():
            title = f"aligned {PLURAL[modality]}" if aligned and others else f"{modality} embeddings"
            methods.append(Method(modality, title, table.embeddings[modality], modality, True, aligned))
    keys = [method.key for method in methods]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(
                "--compare", key, "Two embeddings have this name and modality: name one of them otherwise."
            )
    return methods


def rows_of(other: EmbeddingTable, table: EmbeddingTable) -> np.ndarray:
    """Where the galaxies of ``table`` stand in ``other``, (len(table),) int64, by key.

    Raises:
        DataError: some are not there, or stand there twice.
    """
    place = {key: row for row, key in enumerate(other.strings("key"))}
    if len(place) < len(other):
        raise DataError(
            other.url, f"{len(other) - len(place):,} of {len(other):,} keys twice", "Compare embeddings of one dataset."
        )
    keys = table.strings("key")
    missing = [key for key in keys if key not in place]
    if missing:
        raise DataError(
            other.url,
            f"{len(missing):,} of the {len(keys):,} galaxies of {table.url} are missing, {missing[0]} the first",
            "Embed the same dataset and splits with both runs.",
        )
    return np.array([place[key] for key in keys], np.int64)
