"""The report's charts: redshift scatter, R2 of every property, map of the embeddings, loss curve."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from astroclip_dist.evaluate.methods import Method
from astroclip_dist.evaluate.metrics import redshift_errors
from astroclip_dist.evaluate.prediction import Prediction

COLOURS = {"image": "#2c6fbb", "spectrum": "#d1632a", None: "#6b7280"}
_PALE = {"image": "#86b0de", "spectrum": "#e9a27f", None: "#6b7280"}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "axes.labelcolor": "#374151",
}
MAP_POINTS = 20_000


def draw_redshifts(redshift: Prediction, methods: Sequence[Method]) -> Figure:
    """Predicted against spectroscopic redshift, one panel a method, all on the same galaxies and axes."""
    with matplotlib.rc_context(STYLE):
        figure, panels = _grid(len(methods), 3, 3.3, 3.6)
        truth = redshift.truth
        top = 1.03 * max(truth.max(), *(values.max() for values in redshift.predicted.values()))
        for number, (panel, method) in enumerate(zip(panels, methods, strict=True)):
            predicted = redshift.predicted[method.key]
            errors = redshift_errors(truth, predicted)
            panel.plot([0, top], [0, top], color="#111827", lw=0.8, ls=(0, (4, 3)), zorder=3)
            size = np.clip(4000 / len(predicted), 2, 14)
            panel.scatter(truth, predicted, s=size, c=_colour(method), alpha=0.5, lw=0, rasterized=True)
            panel.set(title=method.title, xlabel="spectroscopic redshift", xlim=(0, top), ylim=(0, top), aspect="equal")
            text = f"R² = {redshift.r2[method.key].value:.3f}\n$\\sigma_{{NMAD}}$ = {errors.sigma_nmad:.4f}\n"
            text += f"outliers {100 * errors.outlier_fraction:.1f} %"
            panel.text(0.04, 0.97, text, transform=panel.transAxes, va="top", linespacing=1.5, color="#111827")
            if number % 3 == 0:
                panel.set_ylabel("redshift from 16 nearest neighbours")
        return figure


def draw_properties(predictions: Mapping[str, Prediction], methods: Sequence[Method]) -> Figure:
    """R2 of every property with its 95 %, a row a method, a panel a property."""
    with matplotlib.rc_context(STYLE):
        figure, panels = _grid(len(predictions), 5, 2.1, 0.9 + 0.27 * len(methods), left=1.3)
        for number, (panel, (name, prediction)) in enumerate(zip(panels, predictions.items(), strict=True)):
            for row, method in enumerate(methods):
                found = prediction.r2[method.key]
                colour = _colour(method)
                panel.plot([found.low, found.high], [row, row], color=colour, lw=2.2, solid_capstyle="round")
                panel.plot(found.value, row, "o", ms=6, color=colour)
            panel.axvline(0, color="#9ca3af", lw=0.8)
            panel.set(title=name, xlabel="R²", ylim=(len(methods) - 0.5, -0.5), yticks=range(len(methods)))
            panel.set_yticklabels([method.title for method in methods] if number % 5 == 0 else [])
            panel.grid(axis="x", color="#e5e7eb", lw=0.6)
            panel.tick_params(axis="y", length=0)
        return figure


def draw_map(methods: Sequence[Method], redshift: np.ndarray) -> Figure:
    """The two main axes of each method's embeddings, coloured by redshift.

    Args:
        redshift: (n,), NaN where unknown.
    """
    with matplotlib.rc_context(STYLE):
        figure, panels = _grid(len(methods), 2, 4.9, 4.2)
        known = redshift[np.isfinite(redshift)]
        low, high = np.percentile(known, [2, 98]) if len(known) else (0.0, 1.0)
        for panel, method in zip(panels, methods, strict=True):
            rows = np.flatnonzero(np.isfinite(method.features[:, 0]))
            rows = np.random.default_rng(0).permutation(rows)[:MAP_POINTS]
            points, shares = _principal_axes(method.features[rows])
            size = np.clip(6000 / max(len(rows), 1), 1.5, 14)
            shown = panel.scatter(
                points[:, 0],
                points[:, 1],
                s=size,
                c=redshift[rows],
                vmin=low,
                vmax=high,
                cmap="viridis",
                lw=0,
                alpha=0.8,
            )
            panel.set(title=method.title, xticks=[], yticks=[])
            panel.set_xlabel(f"first axis, {100 * shares[0]:.0f} % of the variance")
            panel.set_ylabel(f"second axis, {100 * shares[1]:.0f} %")
        figure.colorbar(shown, ax=list(panels), label="redshift", shrink=0.85, pad=0.01)
        return figure


def draw_loss(history: list[tuple[int, float]]) -> Figure:
    """The training loss over the optimizer's steps, with its running mean."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.8, 2.9), layout="constrained")
        panel = figure.subplots()
        steps, loss = (np.array(column, float) for column in zip(*history, strict=True))
        panel.plot(steps, loss, color="#93b4d8", lw=0.8, label="loss of a step")
        width = max(1, len(loss) // 50)
        if width > 1:
            mean = np.convolve(loss, np.ones(width) / width, mode="valid")
            panel.plot(steps[width - 1 :], mean, color=COLOURS["image"], lw=1.8, label=f"mean of {width}")
            panel.legend(frameon=False)
        panel.set(xlabel="step", ylabel="loss", xlim=(steps[0], steps[-1] if len(steps) > 1 else steps[0] + 1))
        panel.grid(axis="y", color="#e5e7eb", lw=0.6)
        return figure


def to_png(figure: Figure) -> bytes:
    """The figure at twice the density of a normal screen."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=190, facecolor="white")
    return out.getvalue()


def _grid(count: int, columns: int, width: float, height: float, *, left: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels of a size in inches, row by row; ``left``: room for the labels of the first."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns + left, height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[count:]:
        panel.set_visible(False)
    return figure, panels[:count]


def _colour(method: Method) -> str:
    return (COLOURS if method.evaluated else _PALE)[method.modality]


def _principal_axes(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, D) -> (n, 2) coordinates and the (2,) shares of the variance along them."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred)
    main = axes[:, ::-1][:, :2]
    # The sign of an axis is arbitrary: fix it, so that the same data give the same picture.
    main = main * np.where(main[np.abs(main).argmax(axis=0), [0, 1]] < 0, -1, 1)
    return centred @ main, variances[::-1][:2] / max(variances.sum(), 1e-30)
