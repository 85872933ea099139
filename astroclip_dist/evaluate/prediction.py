"""Numbers of the catalogue, redshift first, by k-NN from every method on the same galaxies, and who is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from astroclip_dist.embed.table import EmbeddingTable
from astroclip_dist.evaluate.held_out import HeldOut
from astroclip_dist.evaluate.knn import knn_regression, standardise
from astroclip_dist.evaluate.methods import MAGNITUDES, Method
from astroclip_dist.evaluate.metrics import Interval, r2_difference, r2_interval

FEWEST = 10
# AstroCLIP's section 6.3, in the names of the mock survey, of PROVABGS labels, and of the Multimodal Universe.
PROPERTIES = (
    *("log_stellar_mass", "log_metallicity", "age_gyr", "log_ssfr"),
    *("provabgs_log_mstar", "provabgs_tage_mw", "provabgs_log_ssfr"),
    *("log_mstar", "tage_mw"),
)


@dataclass(frozen=True)
class Prediction:
    """What each method predicts of one property for the same held-out galaxies.

    Attributes:
        known: how many galaxies were neighbours.
        truth: (n,) of the catalogue; predicted: method's key -> (n,).
        r2: method's key -> R2 with the bounds of its central 95 %.
    """

    known: int
    truth: np.ndarray
    predicted: dict[str, np.ndarray]
    r2: dict[str, Interval]

    def difference(self, one: str, other: str) -> Interval:
        """R2 of one method minus that of another, with its paired bounds."""
        return r2_difference(self.truth, self.predicted[one], self.predicted[other])


@dataclass(frozen=True)
class Comparison:
    """How the evaluated embeddings of a modality stand against others of the same modality, for one property."""

    property: str
    method: Method
    against: Method
    r2: float
    r2_against: float
    difference: Interval


def predict(table: EmbeddingTable, name: str, methods: Sequence[Method], held_out: HeldOut) -> Prediction | str:
    """Predict a property of the held-out galaxies from their 16 nearest known ones, or say in words why not.

    All features of all methods are standardised over the known galaxies, as in AstroCLIP's downstream code: distances
    then do not depend on how an encoder happens to scale its outputs.
    """
    if name not in table.columns.column_names:
        return f"The galaxies have no {name}."
    values = table.numbers(name)
    # One set for all, so that no method is asked the easier galaxies.
    usable = np.isfinite(values)
    for method in methods:
        usable &= np.isfinite(method.features).all(axis=1)
    known, asked = usable & held_out.neighbours, usable & held_out.queries
    if known.sum() < FEWEST or asked.sum() < FEWEST:
        return (
            f"Only {known.sum()} known and {asked.sum()} held-out galaxies have {name} and everything compared "
            f"({', '.join(method.key for method in methods)}); at least {FEWEST} of each are needed."
        )
    truth, predicted = values[asked], {}
    for method in methods:
        given, wanted = standardise(method.features[known], method.features[asked])
        predicted[method.key] = knn_regression(given, values[known], wanted)
    r2 = {key: r2_interval(truth, guess) for key, guess in predicted.items()}
    return Prediction(int(known.sum()), truth, predicted, r2)


def choose_properties(table: EmbeddingTable, wanted: Sequence[str] | None) -> list[str]:
    """The properties to predict beside redshift: those asked for, or else those of ``PROPERTIES`` that there are.

    Raises:
        DataError: one that was asked for is absent, or no number.
    """
    if wanted is None:
        return [name for name in PROPERTIES if name in table.columns.column_names]
    for name in wanted:
        table.numbers(name)
    return list(wanted)


def compare(name: str, prediction: Prediction, methods: Sequence[Method]) -> list[Comparison]:
    """The evaluated embeddings against all others of the same modality."""
    return [
        Comparison(
            name,
            method,
            other,
            prediction.r2[method.key].value,
            prediction.r2[other.key].value,
            prediction.difference(method.key, other.key),
        )
        for method in methods
        for other in methods
        if method.evaluated and not other.evaluated and other.modality == method.modality
    ]


def over_magnitudes(prediction: Prediction, methods: Sequence[Method]) -> dict[str, Interval]:
    """Method's key -> its R2 minus that of the magnitudes; empty where there are no magnitudes."""
    if MAGNITUDES not in prediction.predicted:
        return {}
    return {
        method.key: prediction.difference(method.key, MAGNITUDES) for method in methods if method.modality is not None
    }
