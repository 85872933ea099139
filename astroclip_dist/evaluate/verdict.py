"""One paragraph that says what the numbers mean, and no more than they mean."""

from __future__ import annotations

from scipy.stats import binomtest

from astroclip_dist.evaluate.redshift import MAGNITUDES, RedshiftResult
from astroclip_dist.evaluate.retrieval import CrossModalRecall

FEW_GALAXIES = 200


def write_verdict(redshift: RedshiftResult | str, recall: dict[str, CrossModalRecall], note: str | None) -> str:
    """The paragraph. ``recall``: direction (``image to spectrum``) -> result, empty without pairs."""
    sentences = [redshift] if isinstance(redshift, str) else _redshift_sentences(redshift)
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
    return " ".join(sentences)


def _redshift_sentences(result: RedshiftResult) -> list[str]:
    sentences = []
    for name in ("image", "spectrum"):
        if name not in result.quality:
            continue
        quality = result.quality[name]
        start = f"{name.capitalize()} embeddings give redshifts with R² = {quality.r2:.2f}"
        if quality.r2_high <= 0:
            start += ", no better than guessing the mean"
        if name not in result.over_magnitudes:
            sentences.append(f"{start}.")
            continue
        difference, low, high = result.over_magnitudes[name]
        baseline = f"the g, r, z magnitudes alone (R² = {result.quality[MAGNITUDES].r2:.2f})"
        interval = f"difference {_signed(difference)}, 95 % between {_signed(low)} and {_signed(high)}"
        if low > 0:
            sentences.append(f"{start}: they beat {baseline}; {interval}.")
        elif high < 0:
            sentences.append(f"{start}: they do not reach {baseline}; {interval}.")
        else:
            sentences.append(f"{start}: they do not beat {baseline} beyond the noise; {interval}.")
    if not result.over_magnitudes:
        sentences.append("The catalogue has no g, r, z magnitudes, so there is no baseline to beat.")
    return sentences


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
