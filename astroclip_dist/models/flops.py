"""Floating point operations that training takes for one sample, by the sizes of its objective.

A multiplication and an addition are two. Only matrix products count, attention's among them, as torch's own
``FlopCounterMode`` has it; norms, activations and losses are left out. Backward costs twice the forward pass: a product
for the gradient of the input, and one for that of the weights; the first layer has no input to differentiate. What is
computed a second time to save memory (``recompute``, the pass of an alignment in micro-batches that only embeds, scores
of attention) is no progress, and does not count (Chowdhery et al. 2022, appendix B).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from astroclip_dist.config.model import (
    CrossAttentionHead,
    ImageEncoder,
    PrototypeHead,
    SpectrumEncoder,
    TransformerSize,
)
from astroclip_dist.config.objective import ClipAlignment, ImageDino, MaskedSpectrum
from astroclip_dist.data.preprocessing.spectra import num_tokens


@dataclass(frozen=True)
class SampleFlops:
    """Forward and backward of one sample.

    Attributes:
        nominal: with every residual branch computed for every crop.
        executed: without those that stochastic depth leaves out.
    """

    nominal: float
    executed: float


@dataclass(frozen=True)
class _Work:
    """FLOPs of a forward pass: of blocks, of the first layer, and of what follows."""

    blocks: float
    embed: float
    after: float = 0.0

    def forward(self) -> float:
        return self.blocks + self.embed + self.after

    def both(self, kept: float = 1.0) -> float:
        """Forward and backward; ``kept``: share of the blocks' branches that are computed."""
        return 3 * (kept * self.blocks + self.after) + 2 * self.embed


def sample_flops(
    objective: ClipAlignment | ImageDino | MaskedSpectrum, *, bands: int, bins: int, global_batch: int
) -> SampleFlops:
    """Those of training one sample.

    Args:
        bands: of the images.
        bins: of the spectra.
        global_batch: with all of which the alignment compares a sample.
    """
    if isinstance(objective, ClipAlignment):
        return _of_alignment(objective, bands, bins, global_batch)
    if isinstance(objective, ImageDino):
        return _of_self_distillation(objective, bands)
    work = _of_spectrum(objective.spectrum, bins)
    tokens = num_tokens(bins, objective.spectrum.slice_size, objective.spectrum.slice_stride)
    head = _linear(tokens, objective.spectrum.width, objective.spectrum.slice_size + 2)
    whole = _Work(work.blocks, work.embed, head).both()
    return SampleFlops(whole, whole)


def _of_alignment(objective: ClipAlignment, bands: int, bins: int, global_batch: int) -> SampleFlops:
    image, spectrum, frozen = objective.image, objective.spectrum, objective.freeze_backbones
    towers = [
        (_of_crop(image, bands, image.crop), _crop_tokens(image, image.crop), image.width),
        (_of_spectrum(spectrum, bins), _spectrum_tokens(spectrum, bins), spectrum.width),
    ]
    # One row of logits forward; backward, its gradient times the embeddings of either side.
    total = 3 * 2.0 * global_batch * objective.head.embedding
    for encoder, tokens, width in towers:
        projected = _linear(tokens, width, 2 * objective.head.embedding)
        rest = _pooling(objective.head, tokens)
        total += encoder.forward() + 2 * projected + 3 * rest if frozen else encoder.both() + 3 * (projected + rest)
    return SampleFlops(total, total)


def _of_self_distillation(objective: ImageDino, bands: int) -> SampleFlops:
    image, head, views = objective.image, objective.head, objective.global_views
    whole = _of_crop(image, bands, views.size)
    part = _of_crop(image, bands, objective.local_views.size)
    count, local = views.count, objective.local_views.count
    student = _Work(count * whole.blocks + local * part.blocks, count * whole.embed + local * part.embed)
    masking = objective.masking
    masked = count * (views.size // image.patch) ** 2 * masking.probability * sum(masking.ratio) / 2
    heads = 3 * _prototypes(head, count + local + masked, image.width)
    teacher = count * whole.forward() + _prototypes(head, count + masked, image.width)
    return SampleFlops(student.both() + heads + teacher, student.both(kept=1 - objective.drop_path) + heads + teacher)


def _linear(tokens: float, inputs: int, outputs: int) -> float:
    return 2.0 * tokens * inputs * outputs


def _blocks(size: TransformerSize, tokens: int) -> float:
    """Of all blocks for one sequence: four products of width x width and two of the MLP a token, and attention's two of
    tokens x width."""
    width, hidden = size.width, round(size.width * size.mlp_ratio)
    return size.depth * (_linear(tokens, width, 4 * width + 2 * hidden) + 4.0 * tokens**2 * width)


def _crop_tokens(config: ImageEncoder, side: int) -> int:
    return 1 + config.registers + (side // config.patch) ** 2


def _of_crop(config: ImageEncoder, bands: int, side: int) -> _Work:
    patches = (side // config.patch) ** 2
    return _Work(_blocks(config, _crop_tokens(config, side)), _linear(patches, bands * config.patch**2, config.width))


def _spectrum_tokens(config: SpectrumEncoder, bins: int) -> int:
    return num_tokens(bins, config.slice_size, config.slice_stride) + config.class_token


def _of_spectrum(config: SpectrumEncoder, bins: int) -> _Work:
    slices = num_tokens(bins, config.slice_size, config.slice_stride)
    return _Work(_blocks(config, _spectrum_tokens(config, bins)), _linear(slices, config.slice_size + 2, config.width))


def _pooling(head: CrossAttentionHead, tokens: int) -> float:
    """Attention of one query, the layer after it, and the MLP."""
    size, hidden = head.embedding, round(head.embedding * head.mlp_ratio)
    return 2 * _linear(tokens, size, 1) + _linear(1, size, size + 2 * hidden)


def _prototypes(head: PrototypeHead, rows: float, width: int) -> float:
    widths = [width, *[head.hidden] * (head.layers - 1), head.bottleneck, head.prototypes]
    return sum(_linear(rows, *pair) for pair in itertools.pairwise(widths))
