"""A contact sheet: the first galaxies of a dataset, each with its colours, name, redshift and spectrum, on one page."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from astroclip_dist.data.preprocessing.rgb import to_rgb
from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from shards.grids.spectra_grid import wavelengths
from shards.sample import Sample

CONTACT_SHEET_NAME = "contact-sheet.png"
GALAXIES_ON_SHEET = 12

_DPI = 110
_SMOOTHING_PX = 11
_INK, _FAINT, _ACCENT = "#1b1f24", "#b8bec6", "#b3541e"
# Vacuum wavelengths in Angstrom of lines that show at a glance whether redshift and grid are right.
_LINES = {
    "[OII]": 3728.5,
    "Ca": 3952.2,
    r"H$\beta$": 4862.7,
    "[OIII]": 5008.2,
    "Mg": 5176.6,
    "Na": 5895.6,
    r"H$\alpha$": 6564.6,
    "[SII]": 6725.5,
}


def draw_contact_sheet(
    samples: Sequence[Sample], image: ImageLayout | None, spectrum: SpectrumLayout | None, title: str = ""
) -> bytes:
    """Draw galaxies as a PNG.

    Args:
        samples: those to draw; each shows what it has.
        image, spectrum: the dataset's layouts.
    """
    columns = 2 if spectrum else 4
    rows = max(1, -(-len(samples) // columns))
    widths = ([1.0] if image else []) + ([3.0] if spectrum else [])
    cell_width, cell_height = (2.2 if image else 0.0) + (5.4 if spectrum else 0.0), 2.4
    header = 0.55 if title else 0.15
    figure = Figure(
        (columns * cell_width + 0.2, rows * cell_height + header), dpi=_DPI, facecolor="white", layout="constrained"
    )
    if title:
        figure.suptitle(title, fontsize=11, color=_INK, x=0.01, ha="left")
    grid = figure.add_gridspec(rows, columns * len(widths), width_ratios=widths * columns)
    for place, sample in enumerate(samples):
        row, column = divmod(place, columns)
        panels = [figure.add_subplot(grid[row, column * len(widths) + panel]) for panel in range(len(widths))]
        panels[0].set_title(_caption(sample), fontsize=8, color=_INK, loc="left", pad=3)
        if image:
            _draw_image(panels[0], sample, image)
        if spectrum:
            _draw_spectrum(panels[-1], sample, spectrum, labelled=row == rows - 1)
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()


def _caption(sample: Sample) -> str:
    redshift = sample.metadata.get("redshift")
    return sample.key if redshift is None else f"{sample.key}\nz = {redshift:.4f}"


def _draw_image(panel: Axes, sample: Sample, layout: ImageLayout) -> None:
    panel.set_xticks([])
    panel.set_yticks([])
    if sample.image is None:
        panel.text(0.5, 0.5, "no image", ha="center", va="center", color=_FAINT, transform=panel.transAxes)
        return
    rgb = to_rgb(torch.from_numpy(sample.image.astype(np.float32))).permute(1, 2, 0).numpy()
    # Rows of a cut-out run north: the first is at the bottom, as in FITS.
    panel.imshow(rgb, origin="lower", interpolation="bicubic")
    bar = 5.0 / layout.pixel_scale_arcsec
    left, bottom = 0.06 * layout.size, 0.07 * layout.size
    panel.plot([left, left + bar], [bottom, bottom], color="white", lw=1.5)
    panel.text(left, bottom + 0.02 * layout.size, '5"', color="white", fontsize=7, va="bottom")


def _draw_spectrum(panel: Axes, sample: Sample, layout: SpectrumLayout, labelled: bool) -> None:
    panel.tick_params(labelsize=7, colors=_INK, length=2)
    panel.spines[["top", "right"]].set_visible(False)
    if sample.spectrum is None:
        panel.text(0.5, 0.5, "no spectrum", ha="center", va="center", color=_FAINT, transform=panel.transAxes)
        return
    wavelength = wavelengths(layout)
    weight = np.ones(layout.size) if sample.ivar is None else (sample.ivar > 0).astype(np.float64)
    flux = np.where(weight > 0, sample.spectrum, np.nan)
    smooth = _smooth(sample.spectrum, weight if sample.ivar is None else sample.ivar.astype(np.float64))
    panel.plot(wavelength, flux, color=_FAINT, lw=0.4)
    panel.plot(wavelength, smooth, color=_INK, lw=0.7)
    panel.set_xlim(wavelength[0], wavelength[-1])
    if np.isfinite(smooth).any():
        low, continuum = np.nanpercentile(smooth, [0.5, 99.0])
        # Emission lines show up to three times the continuum; a cosmic ray does not flatten the rest.
        high = min(float(np.nanmax(smooth)), low + 3 * (continuum - low))
        room = max(high - low, 1e-3)
        panel.set_ylim(min(low, 0.0) - 0.05 * room, high + 0.2 * room)
    for name, rest in _LINES.items() if "redshift" in sample.metadata else ():
        place = rest * (1 + sample.metadata["redshift"])
        if wavelength[0] < place < wavelength[-1]:
            panel.axvline(place, color=_ACCENT, lw=0.5, alpha=0.5)
            panel.annotate(
                name,
                (place, 1.0),
                xycoords=("data", "axes fraction"),
                fontsize=6,
                color=_ACCENT,
                rotation=90,
                ha="right",
                va="top",
            )
    panel.set_ylabel(r"$10^{-17}$ erg/s/cm$^2$/Å", fontsize=6, color=_INK)
    if labelled:
        panel.set_xlabel("observed wavelength, vacuum (Å)", fontsize=7, color=_INK)


def _smooth(flux: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted running mean; NaN where a window holds nothing."""
    window = np.ones(_SMOOTHING_PX)
    total = np.convolve(weight, window, mode="same")
    mean = np.convolve(flux * weight, window, mode="same") / np.where(total > 0, total, np.nan)
    return np.where(weight > 0, mean, np.nan)
