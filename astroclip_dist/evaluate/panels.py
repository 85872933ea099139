"""Retrieval panels: a galaxy, and its nearest neighbours from image or spectrum among images or spectra."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from astroclip_dist.data.preprocessing.rgb import to_rgb
from astroclip_dist.data.reading.lookup import SampleLookup
from astroclip_dist.data.stored.manifest import SpectrumLayout
from astroclip_dist.embed.search import top_k
from astroclip_dist.embed.table import MODALITIES, EmbeddingTable, Modality
from astroclip_dist.evaluate.figures import COLOURS, STYLE

QUERIES, NEIGHBOURS = 4, 6
SHOWN_PIXELS = 96  # the middle of an image, some 25 arcsec
_BINS = 260
_QUERY, _OWN = "#111827", "#1a9850"


@dataclass(frozen=True)
class Retrieval:
    """A query galaxy and, for each pair (query modality, searched modality), rows of its neighbours, nearest first."""

    query: int
    neighbours: dict[tuple[Modality, Modality], np.ndarray]


def choose_queries(table: EmbeddingTable, candidates: np.ndarray) -> np.ndarray:
    """Rows of the queries: at fixed quantiles of redshift (of the key where unknown), so nobody picks the pretty ones.

    Args:
        candidates: (n,) rows that have all modalities.
    """
    if "redshift" in table.columns.column_names:
        order = candidates[np.argsort(table.numbers("redshift")[candidates], kind="stable")]
    else:
        order = candidates[np.argsort(table.strings("key")[candidates], kind="stable")]
    places = (np.arange(QUERIES) + 0.5) / QUERIES * len(order)
    return order[np.unique(places.astype(int))] if len(order) else order


def retrieve(table: EmbeddingTable, query: int, candidates: np.ndarray) -> Retrieval:
    """Nearest neighbours among the candidates. Within a modality the galaxy itself is left out; across, it may win."""
    found = {}
    for asked in table.embeddings:
        for among in table.embeddings:
            rows = candidates[candidates != query] if asked == among else candidates
            vector = torch.from_numpy(table.embeddings[asked][[query]])
            best = top_k(vector, torch.from_numpy(table.embeddings[among][rows]), NEIGHBOURS)[1][0]
            found[asked, among] = rows[best.numpy()]
    return Retrieval(query, found)


def draw_retrieval(table: EmbeddingTable, lookup: SampleLookup, retrieval: Retrieval) -> Figure:
    """One row a pair of modalities: the query in the modality asked, its neighbours in the modality searched.

    Raises:
        DataError, StorageError: a sample cannot be read.
    """
    redshift = table.numbers("redshift") if "redshift" in table.columns.column_names else np.full(len(table), np.nan)
    engine = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 1.5 * len(retrieval.neighbours) + 0.3), layout=engine)
        grid = figure.subplots(len(retrieval.neighbours), NEIGHBOURS + 1, squeeze=False)
        for cells, ((asked, among), rows) in zip(grid, retrieval.neighbours.items(), strict=True):
            _draw_galaxy(cells[0], table, lookup, retrieval.query, asked)
            cells[0].set_ylabel(f"{asked}\n→ {among}", rotation=0, ha="right", va="center", fontweight="bold")
            cells[0].set_title(_label("query", redshift[retrieval.query]), fontsize=8, pad=3)
            _frame(cells[0], _QUERY)
            for cell in cells[1 + len(rows) :]:
                cell.set_visible(False)
            for cell, row in zip(cells[1:], rows, strict=False):
                _draw_galaxy(cell, table, lookup, row, among)
                own = row == retrieval.query
                cell.set_title(_label("itself" if own else "", redshift[row]), fontsize=8, pad=3, fontweight="normal")
                if own:
                    cell.title.set_color(_OWN)
                    _frame(cell, _OWN)
        return figure


def _frame(axes: Axes, colour: str) -> None:
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=2.0)


def _draw_galaxy(axes: Axes, table: EmbeddingTable, lookup: SampleLookup, row: int, modality: Modality) -> None:
    dataset, shard, place, key = (
        table.columns.column(name)[int(row)].as_py() for name in ("dataset", "shard", "row", "key")
    )
    array = lookup.read(dataset, shard, place, modality, key)
    axes.set(xticks=[], yticks=[])
    if modality == "image":
        colours = to_rgb(torch.from_numpy(array.astype(np.float32))).permute(1, 2, 0).numpy()
        margins = [max(0, side - SHOWN_PIXELS) // 2 for side in colours.shape[:2]]
        # North up, east left: rows of a survey image run from south to north.
        middle = colours[margins[0] : margins[0] + SHOWN_PIXELS, margins[1] : margins[1] + SHOWN_PIXELS]
        axes.imshow(middle, origin="lower", interpolation="nearest")
        for spine in axes.spines.values():
            spine.set_visible(False)
        return
    layout = lookup.layout(dataset, "spectrum")
    assert isinstance(layout, SpectrumLayout)
    width = max(1, layout.size // _BINS)
    bins = array[: len(array) // width * width].reshape(-1, width).mean(axis=1)
    wavelength = layout.start_angstrom + layout.step_angstrom * width * (np.arange(len(bins)) + 0.5)
    low, high = np.percentile(bins, [0.5, 99.5])
    axes.plot(
        wavelength,
        np.clip(bins, low - 0.3 * (high - low), high + 0.6 * (high - low)),
        color=COLOURS["spectrum"],
        lw=0.7,
    )
    axes.set(xlim=(wavelength[0], wavelength[-1]), box_aspect=1)
    axes.spines["left"].set_visible(False)


def _label(what: str, redshift: float) -> str:
    z = f"z = {redshift:.3f}" if np.isfinite(redshift) else ""
    return ", ".join(part for part in (what, z) if part)


def with_all_modalities(table: EmbeddingTable, rows: np.ndarray) -> np.ndarray:
    """Those of the rows (bool) that have every modality of the table, as row numbers."""
    for modality in MODALITIES:
        if modality in table.embeddings:
            rows = rows & table.has(modality)
    return np.flatnonzero(rows)
