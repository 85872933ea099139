"""The report's charts: redshift scatter, map of the embeddings, loss curve."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from astroclip_dist.embed.table import Modality
from astroclip_dist.evaluate.redshift import MAGNITUDES, RedshiftResult

COLOURS = {"image": "#2c6fbb", "spectrum": "#d1632a", MAGNITUDES: "#6b7280"}
TITLES = {"image": "image embeddings", "spectrum": "spectrum embeddings", MAGNITUDES: "g, r, z magnitudes"}
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


def draw_redshifts(result: RedshiftResult) -> Figure:
    """Predicted against spectroscopic redshift, one panel a method, all on the same galaxies and axes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.3 * len(result.predicted), 3.6), layout="constrained")
        panels = figure.subplots(1, len(result.predicted), sharex=True, sharey=True, squeeze=False)[0]
        top = 1.03 * max(result.truth.max(), *(values.max() for values in result.predicted.values()))
        for panel, (name, predicted) in zip(panels, result.predicted.items(), strict=True):
            quality = result.quality[name]
            panel.plot([0, top], [0, top], color="#111827", lw=0.8, ls=(0, (4, 3)), zorder=3)
            size = np.clip(4000 / len(predicted), 2, 14)
            panel.scatter(result.truth, predicted, s=size, c=COLOURS[name], alpha=0.45, lw=0, rasterized=True)
            panel.set(title=TITLES[name], xlabel="spectroscopic redshift", xlim=(0, top), ylim=(0, top), aspect="equal")
            text = f"R² = {quality.r2:.3f}\n$\\sigma_{{NMAD}}$ = {quality.sigma_nmad:.4f}\n"
            text += f"outliers {100 * quality.outlier_fraction:.1f} %"
            panel.text(0.04, 0.97, text, transform=panel.transAxes, va="top", linespacing=1.5, color="#111827")
        panels[0].set_ylabel("redshift from 16 nearest neighbours")
        return figure


def draw_map(embeddings: Mapping[Modality, np.ndarray], redshift: np.ndarray) -> Figure:
    """The two main axes of each modality's embeddings, coloured by redshift.

    Args:
        embeddings: modality -> (n, D), NaN rows where absent; redshift: (n,), NaN where unknown.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.9 * len(embeddings), 4.2), layout="constrained")
        panels = figure.subplots(1, len(embeddings), squeeze=False)[0]
        known = redshift[np.isfinite(redshift)]
        low, high = np.percentile(known, [2, 98]) if len(known) else (0.0, 1.0)
        for panel, (name, vectors) in zip(panels, embeddings.items(), strict=True):
            rows = np.flatnonzero(np.isfinite(vectors[:, 0]))
            rows = np.random.default_rng(0).permutation(rows)[:MAP_POINTS]
            points, shares = _principal_axes(vectors[rows])
            size = np.clip(6000 / max(len(rows), 1), 1.5, 14)
            shown = panel.scatter(
                *points.T, s=size, c=redshift[rows], vmin=low, vmax=high, cmap="viridis", lw=0, alpha=0.8
            )
            panel.set(title=TITLES[name], xticks=[], yticks=[])
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


def _principal_axes(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, D) -> (n, 2) coordinates and the (2,) shares of the variance along them."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred)
    main = axes[:, ::-1][:, :2]
    # The sign of an axis is arbitrary: fix it, so that the same data give the same picture.
    main = main * np.where(main[np.abs(main).argmax(axis=0), [0, 1]] < 0, -1, 1)
    return centred @ main, variances[::-1][:2] / max(variances.sum(), 1e-30)
