"""Where encoders look: attention of the alignment's learned queries over wavelengths (AstroCLIP appendix D, Fig. D1)
and over images, and of an image encoder's class token over patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from torch import Tensor

from astroclip_dist.config.model import ImageEncoder, SpectrumEncoder
from astroclip_dist.config.objective import ClipAlignment, ImageDino
from astroclip_dist.data.preprocessing.images import centre_crop
from astroclip_dist.data.preprocessing.rgb import to_rgb
from astroclip_dist.errors import ConfigError
from astroclip_dist.evaluate.examples import Examples, read_examples
from astroclip_dist.evaluate.figures import STYLE
from astroclip_dist.evaluate.spectrum_axes import WAVELENGTH_LABEL, draw_spectrum
from astroclip_dist.models.image_encoder import ImageTransformer
from astroclip_dist.models.transformer import Block
from astroclip_dist.models.two_tower import TwoTower
from astroclip_dist.objectives.inputs import image_inputs, spectrum_tokens
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import resolve_checkpoint
from astroclip_dist.train.run_folder import read_run_config
from astroclip_dist.train.weights import load_weights

_COLOURS = "PuOr_r"
_MAPS = 6  # of an image, beside the image itself
_LIGHT_CONTOURS = (0.08, 0.35)  # of the brightest pixel


def attention_figures(run_url: str, dataset_urls: Sequence[str], count: int) -> list[Figure]:
    """Attention over some held-out galaxies.

    Args:
        run_url: a run, or one of its checkpoints. Of an alignment: one figure for spectra and one for images, as far as
            the datasets have them. Of image self-distillation: one figure, of the teacher.
        count: galaxies in each figure.

    Raises:
        ConfigError: the run trained something else.
        DataError: no checkpoint, or images or spectra of another layout.
    """
    run, checkpoint = resolve_checkpoint(run_url)
    objective = read_run_config(run).objective
    if isinstance(objective, ClipAlignment):
        return _of_alignment(objective, checkpoint, dataset_urls, count)
    if isinstance(objective, ImageDino):
        return [_of_teacher(objective, checkpoint, dataset_urls, count)]
    raise ConfigError("run", run_url, f"It trained {objective.name}: attention is drawn of clip and dinov2 runs.")


@torch.no_grad()
def _of_alignment(config: ClipAlignment, checkpoint: Store, dataset_urls: Sequence[str], count: int) -> list[Figure]:
    examples = read_examples(dataset_urls, [], count, if_there=["image", "spectrum", "ivar"])
    with torch.device("meta"):
        model = TwoTower(config, examples.image, examples.spectrum)
    load_weights(model, checkpoint)
    figures = []
    if examples.spectrum is not None:
        tokens = spectrum_tokens(examples.members["spectrum"], config.spectrum, examples.members.get("ivar"))
        _, weights = model.spectrum_head.attend(model.spectrum_encoder(tokens))
        figures.append(draw_over_spectra(examples, config.spectrum, weights[..., model.spectrum_encoder.first_slice :]))
    if examples.image is not None:
        _, weights = model.image_head.attend(model.image_encoder(image_inputs(examples.members["image"], config.image)))
        title = "Where the learned query of the image head looks"
        maps = weights[..., model.image_encoder.first_patch :]
        figures.append(draw_over_images(examples, config.image, maps, title))
    return figures


@torch.no_grad()
def _of_teacher(config: ImageDino, checkpoint: Store, dataset_urls: Sequence[str], count: int) -> Figure:
    examples = read_examples(dataset_urls, ["image"], count)
    assert examples.image is not None
    with torch.device("meta"):
        encoder = ImageTransformer(config.image, len(examples.image.bands))
    load_weights(encoder, checkpoint, "teacher.encoder.")
    weights = class_token_attention(encoder, image_inputs(examples.members["image"], config.image))
    title = "Where the class token looks in the last block of the teacher"
    return draw_over_images(examples, config.image, weights[..., encoder.first_patch :], title)


@torch.no_grad()
def class_token_attention(encoder: ImageTransformer, crops: Tensor) -> Tensor:
    """How much the class token attends to each token in the encoder's last block.

    Args:
        crops: (n, bands, crop, crop), stretched.

    Returns:
        (n, heads, first_patch + patches), each head's summing to 1.
    """
    block = encoder.blocks[-1]
    assert isinstance(block, Block)
    seen: list[Tensor] = []

    def note(module: Any, inputs: tuple[Any, ...]) -> None:
        tokens, packing = inputs
        seen.append(packing.split(tokens)[0])

    hook = block.attention.register_forward_pre_hook(note)
    try:
        encoder(crops)
    finally:
        hook.remove()
    return block.attention.weights(seen[0])[:, :, 0]


def draw_over_spectra(examples: Examples, config: SpectrumEncoder, weights: Tensor) -> Figure:
    """Each spectrum, and below it a strip for each head: how much it attends to that wavelength.

    Args:
        weights: (n, heads, tokens) of the tokens of ``slice_spectra``. The first stands for mean and standard
            deviation, no wavelength: its share is written beside the strip.
    """
    layout = examples.spectrum
    assert layout is not None
    count, heads, tokens = weights.shape
    # Slices overlap: each colours as much as its distance to the next, around its middle.
    first = (config.slice_size - config.slice_stride) / 2 - 0.5
    edges = layout.start_angstrom + layout.step_angstrom * (first + config.slice_stride * np.arange(tokens))
    rows = np.arange(heads + 1)
    flux = examples.members["spectrum"]
    good = examples.members["ivar"] > 0 if "ivar" in examples.members else torch.ones_like(flux, dtype=torch.bool)
    strips, scale = _over_even(weights[..., 1:])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, (1.5 + 0.18 * heads) * count + 0.6), layout="constrained")
        ratios = [1.3, 0.18 * heads] * count
        panels = figure.subplots(2 * count, 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
        for number, (above, below) in enumerate(zip(panels[::2], panels[1::2], strict=True)):
            redshift = float(examples.redshift[number])
            draw_spectrum(above, flux[number].double().numpy(), good[number].numpy(), layout, redshift=redshift)
            above.set_title(examples.title(number), loc="left", pad=14)
            above.set_ylabel("flux")
            above.tick_params(axis="x", length=0)
            shown = below.pcolormesh(edges, rows, strips[number], norm=scale, cmap=_COLOURS, rasterized=True)
            names = [f"head {row + 1}" for row in range(heads)]
            below.set(yticks=rows[:-1] + 0.5, yticklabels=names, ylim=(heads, 0))
            below.tick_params(axis="y", length=0, labelsize=7)
            for row, share in enumerate(weights[number, :, 0].tolist()):
                below.annotate(
                    f"{100 * share:.1f} % on mean, std",
                    (1.0, row + 0.5),
                    xycoords=("axes fraction", "data"),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=6.5,
                    color="#6b7280",
                )
        panels[-1].set_xlabel(WAVELENGTH_LABEL)
        _explain_colours(figure, shown, list(panels), location="bottom", aspect=60, shrink=0.4)
        figure.suptitle("Where the learned query of the spectrum head looks", fontsize=11)
        return figure


def draw_over_images(examples: Examples, config: ImageEncoder, weights: Tensor, title: str) -> Figure:
    """Each galaxy's image, the mean map of all heads, and those of single heads, with the galaxy's light as contours.

    Args:
        weights: (n, heads, patches), patches row by row.
    """
    count, heads, _ = weights.shape
    side = config.crop // config.patch
    chosen = np.unique(np.linspace(0, heads - 1, min(heads, _MAPS - 1)).round().astype(int)).tolist()
    crops = centre_crop(examples.members["image"].float(), config.crop)
    colours = to_rgb(crops).permute(0, 2, 3, 1).numpy()
    named = ["all heads", *(f"head {head + 1}" for head in chosen)]
    maps, scale = _over_even(torch.cat([weights.mean(dim=1, keepdim=True), weights[:, chosen]], dim=1))
    maps = maps.reshape(count, len(named), side, side)
    # North up, east left: rows of a survey image run from south to north.
    place: dict[str, Any] = {"origin": "lower", "extent": (-0.5, config.crop - 0.5) * 2, "interpolation": "nearest"}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.55 * (len(named) + 1) + 0.6, 1.72 * count + 0.5), layout="constrained")
        grid = figure.subplots(count, len(named) + 1, squeeze=False)
        for number, cells in enumerate(grid):
            for cell in cells:
                cell.set(xticks=[], yticks=[])
                cell.spines[:].set_visible(False)
            cells[0].imshow(colours[number], **place)
            cells[0].set_title(examples.title(number), fontsize=7, pad=3)
            light = gaussian_filter(crops[number].sum(dim=0).numpy(), 1.5)
            levels = [share * light.max() for share in _LIGHT_CONTOURS]
            for cell, name, heat in zip(cells[1:], named, maps[number], strict=True):
                shown = cell.imshow(heat, norm=scale, cmap=_COLOURS, **place)
                if levels[0] > 0:
                    cell.contour(light, levels=levels, colors="#111827", linewidths=0.5)
                cell.set_title(name, fontsize=7, pad=3, fontweight="normal")
        _explain_colours(figure, shown, grid.ravel().tolist(), aspect=30, shrink=0.7)
        figure.suptitle(title, fontsize=11)
        return figure


def _over_even(weights: Tensor) -> tuple[np.ndarray, LogNorm]:
    """Weights over their mean along the last axis, and a scale of colours for all of them, symmetric around 1: from a
    model that looks nowhere in particular to one that sees one spot only, differences show."""
    relative = (weights / weights.mean(dim=-1, keepdim=True)).float().clamp_min(1e-6).numpy()
    limit = 2 ** np.clip(np.percentile(np.abs(np.log2(relative)), 99.5), 0.1, 4)
    return relative, LogNorm(1 / limit, limit)


def _explain_colours(figure: Figure, shown: ScalarMappable, axes: list[Axes], **where: Any) -> None:
    low, high = shown.get_clim()
    bar = figure.colorbar(shown, ax=axes, pad=0.01, **where)
    bar.minorticks_off()
    bar.set_ticks([low, 1, high], labels=[f"{low:.2f}", "1", f"{high:.2f}"])
    bar.set_label("attention over an even look")
