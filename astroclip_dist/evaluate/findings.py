"""The numbers of an evaluation: what is predicted how well, who is better, and what is found across modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from astroclip_dist.embed.table import EmbeddingTable
from astroclip_dist.evaluate.held_out import HeldOut, hold_out
from astroclip_dist.evaluate.knn import K
from astroclip_dist.evaluate.methods import Method, collect_methods
from astroclip_dist.evaluate.metrics import Interval, redshift_errors
from astroclip_dist.evaluate.panels import with_all_modalities
from astroclip_dist.evaluate.prediction import (
    Comparison,
    Prediction,
    choose_properties,
    compare,
    over_magnitudes,
    predict,
)
from astroclip_dist.evaluate.retrieval import CrossModalRecall, cross_modal_recall
from astroclip_dist.evaluate.verdict import judge, write_verdict

REDSHIFT = "redshift"


@dataclass(frozen=True)
class Findings:
    """All that was measured of one table of embeddings.

    Attributes:
        predictions: property -> what each method predicts, or why nothing is predicted; redshift first.
        over_magnitudes: method's key -> R2 of redshift minus that of the magnitudes.
        recall: direction (``image to spectrum``) -> result; empty without pairs in one space.
    """

    held_out: HeldOut
    methods: list[Method]
    predictions: dict[str, Prediction | str]
    over_magnitudes: dict[str, Interval]
    comparisons: list[Comparison]
    recall: dict[str, CrossModalRecall]

    @property
    def redshift(self) -> Prediction | str:
        return self.predictions[REDSHIFT]

    @property
    def predicted(self) -> dict[str, Prediction]:
        """Those properties that could be predicted."""
        return {name: result for name, result in self.predictions.items() if isinstance(result, Prediction)}

    @property
    def verdict(self) -> str:
        return write_verdict(self.redshift, self.over_magnitudes, self.comparisons, self.recall, self.held_out.note)

    def as_json(self) -> dict[str, Any]:
        """For ``results.json``."""
        others = {name: result for name, result in self.predictions.items() if name != REDSHIFT}
        return {
            "verdict": self.verdict,
            "galaxies": {
                "all": len(self.held_out.queries),
                "neighbours": int(self.held_out.neighbours.sum()),
                "held_out": int(self.held_out.queries.sum()),
                "note": self.held_out.note,
            },
            "methods": {method.key: method.title for method in self.methods},
            "redshift": _redshift(self.redshift, self.over_magnitudes),
            "properties": {name: _property(result) for name, result in others.items()},
            "comparisons": [_comparison(comparison) for comparison in self.comparisons],
            "cross_modal": {direction: asdict(result) for direction, result in self.recall.items()},
        }


def measure(
    table: EmbeddingTable,
    others: Sequence[tuple[str, EmbeddingTable]] = (),
    properties: Sequence[str] | None = None,
) -> Findings:
    """Ask all embeddings about the same held-out galaxies.

    Args:
        others: (name, embeddings of the same galaxies) to compare with.
        properties: to predict beside redshift; None: those of ``prediction.PROPERTIES`` that the galaxies have.

    Raises:
        DataError: others lack galaxies of the table; a property is absent or no number.
        ConfigError: two others have one name.
    """
    held_out = hold_out(table.strings("split"), table.strings("key"))
    methods = collect_methods(table, others)
    names = [REDSHIFT, *choose_properties(table, properties)]
    predictions = {name: predict(table, name, methods, held_out) for name in names}
    redshift = predictions[REDSHIFT]
    return Findings(
        held_out,
        methods,
        predictions,
        over_magnitudes(redshift, methods) if isinstance(redshift, Prediction) else {},
        [
            comparison
            for name, result in predictions.items()
            if isinstance(result, Prediction)
            for comparison in compare(name, result, methods)
        ],
        _recall(table, held_out),
    )


def _recall(table: EmbeddingTable, held_out: HeldOut) -> dict[str, CrossModalRecall]:
    # Without an alignment the two modalities lie in spaces of their own, even if of one size.
    if table.manifest.objective != "clip" or set(table.embeddings) != {"image", "spectrum"}:
        return {}
    pairs = with_all_modalities(table, held_out.partners)
    if len(pairs) < 2:
        return {}
    image, spectrum = table.embeddings["image"][pairs], table.embeddings["spectrum"][pairs]
    return {
        "image to spectrum": cross_modal_recall(image, spectrum),
        "spectrum to image": cross_modal_recall(spectrum, image),
    }


def _redshift(result: Prediction | str, over: Mapping[str, Interval]) -> dict[str, Any]:
    if isinstance(result, str):
        return {"note": result}
    described = _property(result)
    for key, method in described["methods"].items():
        method |= asdict(redshift_errors(result.truth, result.predicted[key]))
    differences = {key: _difference(interval) for key, interval in over.items()}
    return {**described, "k": K, "r2_over_magnitudes": differences}


def _property(result: Prediction | str) -> dict[str, Any]:
    if isinstance(result, str):
        return {"note": result}
    methods = {key: {"r2": r2.value, "r2_low": r2.low, "r2_high": r2.high} for key, r2 in result.r2.items()}
    return {"known": result.known, "held_out": len(result.truth), "methods": methods}


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "property": comparison.property,
        "method": comparison.method.key,
        "against": comparison.against.key,
        "r2": comparison.r2,
        "r2_against": comparison.r2_against,
        **_difference(comparison.difference),
        "is": judge(comparison.difference, "better", "worse", "within the noise"),
    }


def _difference(interval: Interval) -> dict[str, float]:
    return {"difference": interval.value, "low": interval.low, "high": interval.high}
