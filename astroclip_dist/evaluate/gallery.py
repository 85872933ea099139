"""What a report shows of the models themselves: spectra that they fill in, and where they look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from astroclip_dist.errors import UserError

SHOWN = 4


@dataclass(frozen=True)
class Runs:
    """URLs of the runs behind a report, where known: the one that trained the embeddings, and the pre-trainings."""

    embedded: str | None = None
    image: str | None = None
    spectrum: str | None = None


@dataclass
class Gallery:
    """Figures with what they show in words; ``notes`` say which could not be drawn.

    Attributes:
        measured: of the reconstructions, by dataset.
    """

    reconstructions: list[tuple[str, Figure]] = field(default_factory=list)
    attention: list[tuple[str, Figure]] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def draw_gallery(runs: Runs, datasets: Sequence[str], spectra: str | None) -> Gallery:
    """Draw what the given runs can show.

    Args:
        datasets: those that were embedded; spectra: another one, None for none.
    """
    gallery = Gallery()
    sources = [(tuple(datasets), "the evaluated galaxies"), *([((spectra,), spectra)] if spectra else [])]
    for urls, of in sources:
        if runs.spectrum is not None:
            _reconstruct(gallery, runs.spectrum, urls, of)
        if runs.embedded is not None:
            _attend(gallery, runs.embedded, urls, of)
        if runs.image is not None and urls == tuple(datasets):
            _attend(gallery, runs.image, urls, of)
    return gallery


def _reconstruct(gallery: Gallery, run: str, datasets: tuple[str, ...], of: str) -> None:
    # With the models it needs torch and the objectives, seconds to load: only where it is drawn.
    from astroclip_dist.evaluate.reconstruction import reconstruction_figure

    try:
        figure, measured = reconstruction_figure(run, datasets, SHOWN)
    except UserError as error:
        gallery.notes.append(f"Filled-in spectra of {of} are missing: {error}")
        return
    gallery.reconstructions.append((f"{run} on {of}", figure))
    gallery.measured[", ".join(datasets)] = measured


def _attend(gallery: Gallery, run: str, datasets: tuple[str, ...], of: str) -> None:
    from astroclip_dist.evaluate.attention import attention_figures

    try:
        figures = attention_figures(run, datasets, SHOWN)
    except UserError as error:
        gallery.notes.append(f"Attention of {run} on {of} is missing: {error}")
        return
    gallery.attention += [(f"{run} on {of}", figure) for figure in figures]
