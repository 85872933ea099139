"""Redshifts by k-NN from image embeddings, from spectrum embeddings, and from magnitudes, on the same galaxies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from astroclip_dist.embed.table import MODALITIES, EmbeddingTable
from astroclip_dist.evaluate.held_out import HeldOut
from astroclip_dist.evaluate.knn import knn_regression, standardise
from astroclip_dist.evaluate.metrics import RedshiftQuality, r2_difference, redshift_quality
from astroclip_dist.evaluate.photometry import colours_and_magnitude

MAGNITUDES = "magnitudes"
FEWEST = 10


@dataclass(frozen=True)
class RedshiftResult:
    """What each method (image, spectrum, magnitudes) predicts for the same held-out galaxies.

    Attributes:
        known: how many galaxies were neighbours.
        truth: (n,) redshifts; predicted: method -> (n,).
        over_magnitudes: method -> its R2 minus that of the magnitudes, with the bounds of the central 95 %.
    """

    known: int
    truth: np.ndarray
    predicted: dict[str, np.ndarray]
    quality: dict[str, RedshiftQuality]
    over_magnitudes: dict[str, tuple[float, float, float]]


def predict_redshifts(table: EmbeddingTable, held_out: HeldOut) -> RedshiftResult | str:
    """Run the comparison, or say in words why it cannot be run."""
    if "redshift" not in table.columns.column_names:
        return "The galaxies have no redshift."
    redshift = table.numbers("redshift")
    features: dict[str, np.ndarray] = {name: table.embeddings[name] for name in MODALITIES if table.has(name).any()}
    magnitudes = colours_and_magnitude(table)
    if magnitudes is not None and np.isfinite(magnitudes).all(axis=1).any():
        features[MAGNITUDES] = magnitudes
    # One set for all, so that no method is asked the easier galaxies.
    usable = np.isfinite(redshift)
    for feature in features.values():
        usable &= np.isfinite(feature).all(axis=1)
    known, asked = usable & held_out.neighbours, usable & held_out.queries
    if known.sum() < FEWEST or asked.sum() < FEWEST:
        return (
            f"Only {known.sum()} known and {asked.sum()} held-out galaxies have a redshift and everything compared "
            f"({', '.join(features)}); at least {FEWEST} of each are needed."
        )
    predicted = {}
    for name, feature in features.items():
        pair = (feature[known], feature[asked])
        given, wanted = standardise(*pair) if name == MAGNITUDES else pair
        predicted[name] = knn_regression(given, redshift[known], wanted)
    truth = redshift[asked]
    over = {
        name: r2_difference(truth, predicted[name], predicted[MAGNITUDES])
        for name in predicted
        if name != MAGNITUDES and MAGNITUDES in predicted
    }
    quality = {name: redshift_quality(truth, values) for name, values in predicted.items()}
    return RedshiftResult(int(known.sum()), truth, predicted, quality, over)
