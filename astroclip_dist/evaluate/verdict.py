"""A few sentences that say what the numbers mean, and no more than they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scipy.stats import binomtest

from astroclip_dist.evaluate.methods import MAGNITUDES, PLURAL
from astroclip_dist.evaluate.metrics import Interval
from astroclip_dist.evaluate.prediction import Comparison, Prediction
from astroclip_dist.evaluate.retrieval import CrossModalRecall

FEW_GALAXIES = 200


def write_verdict(
    redshift: Prediction | str,
    over_magnitudes: Mapping[str, Interval],
    comparisons: Sequence[Comparison],
    recall: Mapping[str, CrossModalRecall],
    note: str | None,
) -> str:
    """What to say, a line a subject.

    Args:
        redshift: the prediction, or why there is none; over_magnitudes: method's key -> its R2 minus the magnitudes'.
        recall: direction (``image to spectrum``) -> result, empty without pairs.
    """
    lines = [redshift] if isinstance(redshift, str) else [" ".join(_redshift_sentences(redshift, over_magnitudes))]
    lines += _comparison_lines(comparisons)
    sentences = []
    for direction, result in recall.items():
        own, other = direction.split(" to ")
        first, tenth = (f"{_percent(result.recall[k])} (chance {_percent(result.chance[k])})" for k in (1, 10))
        sentences.append(
            f"Of {result.candidates:,} galaxies, {first} have their own {other} nearest to their {own}, "
            f"{_against_chance(result)}; {tenth} have it among the ten nearest."
        )
    if not recall:
        sentences.append("There are no galaxies with both modalities, so nothing can be said about the alignment.")
    if not isinstance(redshift, str) and len(redshift.truth) < FEW_GALAXIES:
        sentences.append(f"With {len(redshift.truth)} held-out galaxies all of this is rough.")
    if note:
        sentences.append(note)
    return "\n".join([*lines, " ".join(sentences)])


def judge(difference: Interval, better: str, worse: str, neither: str) -> str:
    """Which of three words fits: a difference counts only where its 95 % exclude 0."""
    return better if difference.low > 0 else worse if difference.high < 0 else neither


def _redshift_sentences(redshift: Prediction, over_magnitudes: Mapping[str, Interval]) -> list[str]:
    sentences = []
    for name in PLURAL:
        if name not in redshift.r2:
            continue
        quality = redshift.r2[name]
        start = f"{name.capitalize()} embeddings give redshifts with R² = {quality.value:.2f}"
        if quality.high <= 0:
            start += ", no better than guessing the mean"
        if name not in over_magnitudes:
            sentences.append(f"{start}.")
            continue
        baseline = f"the g, r, z magnitudes alone (R² = {redshift.r2[MAGNITUDES].value:.2f})"
        over = over_magnitudes[name]
        words = judge(over, "they beat {}", "they do not reach {}", "they do not beat {} beyond the noise")
        sentences.append(f"{start}: {words.format(baseline)}; {_difference(over)}.")
    if not over_magnitudes:
        sentences.append("The catalogue has no g, r, z magnitudes, so there is no baseline to beat.")
    return sentences


def _comparison_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """For each pair of embeddings: redshift (or the first property there is), then the other properties in short."""
    pairs: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in comparisons:
        pairs.setdefault((comparison.method.key, comparison.against.key), []).append(comparison)
    lines = []
    for first, *others in pairs.values():
        numbers = (
            f"R² of {first.property} {first.r2:.2f} against {first.r2_against:.2f} ({first.against.title}), "
            f"{_difference(first.difference)}."
        )
        lines.append(" ".join([f"{_subject(first)}: {numbers}", *([_others(others)] if others else [])]))
    return lines


def _subject(comparison: Comparison) -> str:
    method, against = comparison.method, comparison.against
    assert method.modality is not None
    if method.aligned and not against.aligned:
        words = judge(comparison.difference, "helps {}", "hurts {}", "neither helps nor hurts {} beyond the noise")
        return "Alignment " + words.format(PLURAL[method.modality])
    words = judge(comparison.difference, "better than", "worse than", "not different beyond the noise from")
    return f"{method.modality.capitalize()} embeddings are {words} {against.title}"


def _others(comparisons: Sequence[Comparison]) -> str:
    better = [c.property for c in comparisons if judge(c.difference, "+", "-", "") == "+"]
    worse = [c.property for c in comparisons if judge(c.difference, "+", "-", "") == "-"]
    parts = [f"better for {_join(better)}"] * bool(better) + [f"worse for {_join(worse)}"] * bool(worse)
    said = ", ".join(parts) if parts else "not different beyond the noise"
    rest = "" if not parts or len(better) + len(worse) == len(comparisons) else ", for the rest within the noise"
    return f"For the other properties ({_join([c.property for c in comparisons])}) it is {said}{rest}."


def _join(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _difference(interval: Interval) -> str:
    return f"difference {_signed(interval.value)}, 95 % between {_signed(interval.low)} and {_signed(interval.high)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else f"{100 * share:.2g} %"


def _against_chance(result: CrossModalRecall) -> str:
    hits = round(result.recall[1] * result.candidates)
    if binomtest(hits, result.candidates, result.chance[1], alternative="greater").pvalue > 0.025:
        return "no more than chance may give"
    factor = result.recall[1] / result.chance[1]
    return f"{factor:.0f} times chance" if factor >= 10 else f"{factor:.1f} times chance"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")  # noqa: RUF001
