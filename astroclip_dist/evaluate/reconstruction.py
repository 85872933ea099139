"""What a masked spectrum model puts where it sees nothing (AstroCLIP appendix D, Fig. D2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from astroclip_dist.config.objective import MaskedSpectrum
from astroclip_dist.data.draws import stream_key
from astroclip_dist.data.masking.segments import segment_masks
from astroclip_dist.data.preprocessing.joining import join_slices, mean_and_std
from astroclip_dist.data.stored.manifest import SpectrumLayout
from astroclip_dist.errors import ConfigError
from astroclip_dist.evaluate.examples import Examples, read_examples
from astroclip_dist.evaluate.figures import COLOURS, STYLE
from astroclip_dist.evaluate.spectrum_axes import (
    FAINT,
    FLUX_LABEL,
    INK,
    WAVELENGTH_LABEL,
    draw_spectrum,
    smooth,
    wavelengths,
)
from astroclip_dist.models.masked_spectrum import MaskedSpectrumModel, mask_tokens
from astroclip_dist.objectives.inputs import spectrum_tokens
from astroclip_dist.train.checkpoint import resolve_checkpoint
from astroclip_dist.train.run_folder import read_run_config
from astroclip_dist.train.weights import load_weights

# The numbers are those of so many spectra, however few are drawn.
MEASURED = 64
_AT_ONCE = 8
_CLOSE_UPS = 6
_SHADE = "#fdeadf"


@dataclass(frozen=True)
class Reconstructions:
    """Spectra and what a model made of their hidden bins, (n, bins) each, in the units of the dataset.

    Attributes:
        hidden: bins that no token shows which the model saw. Tokens overlap, so these are fewer than the bins of masked
            tokens: the others could be copied from a neighbour.
        good: bins that are not masked by their inverse variance.
        predicted: NaN where not hidden.
        mean, std: (n, 1), of the whole spectrum; its errors are measured in the latter.
        noise: standard deviation of the flux; NaN where unknown.
    """

    flux: np.ndarray
    hidden: np.ndarray
    good: np.ndarray
    predicted: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    noise: np.ndarray

    def errors(self, answer: np.ndarray) -> np.ndarray:
        """Mean squared error of an answer in the good hidden bins of each spectrum, (n,), in units of std^2."""
        return self.mean_hidden(((answer - self.flux) / self.std) ** 2)

    def mean_hidden(self, values: np.ndarray) -> np.ndarray:
        """(n, bins) to the (n,) means over the good hidden bins; NaN for a spectrum without any."""
        counted = self.hidden & self.good
        count = counted.sum(axis=1)
        return np.where(count > 0, np.where(counted, values, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan)


def reconstruction_figure(run_url: str, dataset_urls: Sequence[str], count: int) -> tuple[Figure, dict[str, Any]]:
    """Hide stretches of held-out spectra as in training, and draw what the model puts there.

    Args:
        run_url: a masked_spectrum run, or one of its checkpoints.
        count: spectra to draw.

    Returns:
        The figure, and numbers of up to ``MEASURED`` spectra (``measure``) with the ``split`` that they are of.

    Raises:
        ConfigError: the run trained something else. DataError: no checkpoint, or spectra of another layout.
    """
    run, checkpoint = resolve_checkpoint(run_url)
    objective = read_run_config(run).objective
    if not isinstance(objective, MaskedSpectrum):
        raise ConfigError("run", run_url, f"It trained {objective.name}; spectra are filled in by masked_spectrum.")
    examples = read_examples(dataset_urls, ["spectrum"], max(count, MEASURED), if_there=["ivar"])
    layout = examples.spectrum
    assert layout is not None
    with torch.device("meta"):
        model = MaskedSpectrumModel(objective.spectrum, layout.size)
    model = load_weights(model, checkpoint)
    found = reconstruct(model, objective, examples)
    figure = draw_reconstructions(found, examples, layout, min(count, len(examples)))
    return figure, measure(found, layout) | {"split": examples.split}


@torch.no_grad()
def reconstruct(model: MaskedSpectrumModel, objective: MaskedSpectrum, examples: Examples) -> Reconstructions:
    """Mask each spectrum, the same way each time, and let the model fill it in.

    Raises:
        DataError: spectra without the inverse variances that the encoder needs.
    """
    config = objective.spectrum
    flux, ivar = examples.members["spectrum"], examples.members.get("ivar")
    tokens = spectrum_tokens(flux, config, ivar)
    masks = segment_masks(
        examples.sample_ids, stream_key("reconstruction"), tokens.shape[1], objective.masks, objective.mask_width
    )
    masked = mask_tokens(tokens, masks)
    answers = torch.cat([model(part) for part in masked.split(_AT_ONCE)])[:, 1:, 2:]
    chosen, size, stride = masks[:, 1:], flux.shape[1], config.slice_stride
    joined, of_masked = join_slices(answers, chosen, size, stride)
    _, of_visible = join_slices(answers, ~chosen, size, stride)
    hidden = (of_masked > 0) & (of_visible == 0)
    mean, std = mean_and_std(tokens)
    good = torch.ones_like(flux, dtype=torch.bool) if ivar is None else ivar > 0
    noise = torch.full_like(flux, torch.nan) if ivar is None else ivar.clamp_min(0).rsqrt()

    def as_numbers(values: Tensor) -> np.ndarray:
        return values.double().numpy()

    return Reconstructions(
        flux=as_numbers(flux),
        hidden=hidden.numpy(),
        good=good.numpy(),
        predicted=as_numbers(torch.where(hidden, joined * std + mean, torch.nan)),
        mean=as_numbers(mean),
        std=as_numbers(std),
        noise=as_numbers(noise),
    )


def measure(found: Reconstructions, layout: SpectrumLayout) -> dict[str, Any]:
    """How well hidden bins are predicted; errors in squared standard deviations of the spectrum, means over spectra.

    A spectrum without a good hidden bin is left out.

    Returns:
        ``explained`` is the share of the variance in hidden bins (around the mean of the spectrum) that the model
        explains, ``explained_by_line`` that of a straight line across the gap, ``explainable`` what the noise leaves to
        be explained. None where unknown, as the noise is without inverse variances.
    """
    answers = {"model": found.predicted, "mean": found.mean, "line": straight_lines(found, layout)}
    errors = {name: found.errors(answer) for name, answer in answers.items()}
    errors["noise"] = found.mean_hidden((found.noise / found.std) ** 2)
    counted = np.isfinite(errors["mean"])
    average = {
        name: float(of[counted].mean())
        for name, of in errors.items()
        if counted.any() and np.isfinite(of[counted]).all()
    }

    def share(name: str) -> float | None:
        return 1 - average[name] / average["mean"] if name in average and average["mean"] > 0 else None

    return {
        "spectra": int(counted.sum()),
        "hidden_share": float(found.hidden.mean()),
        "error": average.get("model"),
        "error_of_mean": average.get("mean"),
        "explained": share("model"),
        "explained_by_line": share("line"),
        "explainable": share("noise"),
    }


def straight_lines(found: Reconstructions, layout: SpectrumLayout) -> np.ndarray:
    """The answer of somebody who sees only the edges of each gap, (n, bins): a line between the levels at both sides,
    or that of one side at the spectrum's end."""
    answers = np.empty_like(found.flux)
    for row, (flux, hidden, good) in enumerate(zip(found.flux, found.hidden, found.good, strict=True)):
        seen = good & ~hidden
        level = np.where(seen, smooth(flux, seen, layout), np.nan)
        known = np.flatnonzero(np.isfinite(level))
        answers[row] = np.interp(np.arange(len(flux)), known, level[known]) if len(known) else found.mean[row]
    return answers


def draw_reconstructions(found: Reconstructions, examples: Examples, layout: SpectrumLayout, count: int) -> Figure:
    """The first spectra: the whole of each, hidden stretches shaded, and below it a close-up of each stretch."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 3.3 * count + 0.3), layout="constrained")
        parts = figure.subfigures(count, 1, squeeze=False, hspace=0.03)[:, 0]
        for row, part in enumerate(parts):
            _draw_one(part, found, row, examples, layout)
        handles, labels = parts[0].axes[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
        return figure


def _draw_one(part: SubFigure, found: Reconstructions, row: int, examples: Examples, layout: SpectrumLayout) -> None:
    flux, good, predicted = found.flux[row], found.good[row], found.predicted[row]
    wavelength, smoothed = wavelengths(layout), smooth(flux, good, layout)
    gaps = _runs(found.hidden[row])
    shown = gaps[:_CLOSE_UPS]
    grid = part.add_gridspec(2, max(1, len(shown)), height_ratios=[1.5, 1])
    whole = part.add_subplot(grid[0, :])
    draw_spectrum(whole, flux, good, layout, redshift=float(examples.redshift[row]))
    for gap in gaps:
        whole.axvspan(wavelength[gap.start], wavelength[gap.stop - 1], color=_SHADE, lw=0, zorder=0)
    whole.plot(wavelength, predicted, color=COLOURS["spectrum"], lw=1.3, zorder=4)
    error, of_mean = (found.errors(answer)[row] for answer in (found.predicted, found.mean))
    whole.set_title(examples.title(row), loc="left", pad=14)
    if of_mean > 0:
        explained = f"{100 * (1 - error / of_mean):.0f} % of the hidden variance explained"
        whole.set_title(explained, loc="right", pad=14, fontweight="normal", fontsize=9)
    whole.set(xlabel=WAVELENGTH_LABEL, ylabel=FLUX_LABEL)
    for number, gap in enumerate(shown):
        closeup = part.add_subplot(grid[1, number])
        around = slice(max(0, gap.start - len(gap) // 6), min(layout.size, gap.stop + len(gap) // 6))
        seen = np.where(good, flux, np.nan)
        closeup.plot(wavelength[around], seen[around], color=FAINT, lw=0.5, label="flux")
        closeup.plot(wavelength[around], smoothed[around], color=INK, lw=1.0, label="flux, mean of 16 Å")
        closeup.plot(wavelength[around], predicted[around], color=COLOURS["spectrum"], lw=1.6, label="filled in")
        closeup.axvspan(wavelength[gap.start], wavelength[gap.stop - 1], color=_SHADE, lw=0, zorder=0)
        levels = np.concatenate([smoothed[around], predicted[around]])
        levels = levels[np.isfinite(levels)]
        if len(levels):
            margin = max(0.6 * np.ptp(levels), 1e-3)
            closeup.set_ylim(levels.min() - margin, levels.max() + margin)
        closeup.set_xlim(wavelength[around.start], wavelength[around.stop - 1])
        closeup.locator_params(nbins=3)
        closeup.tick_params(labelsize=7)


def _runs(hidden: np.ndarray) -> list[range]:
    """The contiguous stretches of a (bins,) bool array."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], hidden, [False]]).astype(np.int8)))
    return [range(int(first), int(stop)) for first, stop in edges.reshape(-1, 2)]
