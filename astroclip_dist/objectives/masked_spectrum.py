"""Filling in masked stretches of spectra (AstroCLIP sections 2.2 and 5.2, equation A1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from astroclip_dist.config.objective import MaskedSpectrum
from astroclip_dist.data.augment.draws import to_device
from astroclip_dist.data.draws import stream_key
from astroclip_dist.data.masking.segments import segment_masks
from astroclip_dist.data.preprocessing.joining import mean_and_std
from astroclip_dist.data.preprocessing.spectra import num_tokens
from astroclip_dist.data.streaming.stream import Batch
from astroclip_dist.models.masked_spectrum import MaskedSpectrumModel, mask_tokens
from astroclip_dist.objectives.base import Objective, Setting
from astroclip_dist.objectives.inputs import spectrum_tokens
from astroclip_dist.parallel.engines import Engine

# Error that a good prediction still makes, in standard deviations of its spectrum: see ``bin_weights``.
PREDICTION_ERROR = 0.1


@dataclass(frozen=True)
class MaskedSpectra:
    """Spectra as tokens, what is to be predicted of them, and what it counts.

    Attributes:
        tokens: (n, tokens, slice_size + 2), whole: the targets.
        masks: (n, tokens) bool, never of token 0.
        weights: (n, tokens - 1, slice_size), of the bins of all tokens but token 0.
    """

    tokens: Tensor
    masks: Tensor
    weights: Tensor

    def split(self, size: int) -> list[MaskedSpectra]:
        parts = zip(self.tokens.split(size), self.masks.split(size), self.weights.split(size), strict=True)
        return [MaskedSpectra(*part) for part in parts]


class MaskedSpectrumObjective(Objective):
    """Trains ``MaskedSpectrumModel``.

    The loss of a spectrum is the mean squared error over the bins of its masked tokens, in units of its own standard
    deviation; that of a batch is the mean over its spectra. Every spectrum is normalised by itself, so the loss and its
    gradient do not depend on how a batch is cut over ranks and micro-batches, and nothing is sent for it.

    AstroCLIP's code divides by the number of masked values that differ from the zeros they were replaced with, over the
    micro-batch of one process, and so leaves out the two padding numbers of a token. Here they are left out by their
    place, and a flux that equals the mean is a target like any other: otherwise the two are the same where each
    spectrum has as many masked bins. Its code may also mask token 0, which holds mean and standard deviation;
    ``segment_masks`` never does. In both, tokens overlap: at the edges of a masked stretch half of a token can be read
    from its neighbour.
    """

    def __init__(self, setting: Setting, config: MaskedSpectrum) -> None:
        self.config, self._setting = config, setting
        encoder = config.spectrum
        self._layout = setting.spectrum_layout(encoder, ivar=config.ivar_weighted)
        self._uses_ivar = encoder.ivar_aware or config.ivar_weighted
        self.members: Sequence[str] = ("spectrum", "ivar") if self._uses_ivar else ("spectrum",)
        self._tokens = num_tokens(self._layout.size, encoder.slice_size, encoder.slice_stride)
        self._micro_batch, self._key = setting.config.micro_batch, stream_key("spectrum mask", setting.config.seed)
        # Widths that do not fit are to be refused before anything is read.
        self._masks(np.empty(0, np.uint64))

    def build(self) -> MaskedSpectrumModel:
        with torch.device("meta"):
            return MaskedSpectrumModel(self.config.spectrum, self._layout.size)

    def prepare(self, batch: Batch) -> MaskedSpectra:
        device, encoder = self._setting.device, self.config.spectrum
        members = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.members.items()}
        masks = to_device(self._masks(batch.draw_ids).numpy(), device)
        ivar = members.get("ivar")
        tokens = spectrum_tokens(members["spectrum"], encoder, ivar)
        if ivar is None:
            weights = tokens.new_ones(()).expand(len(tokens), self._layout.size)
        else:
            weights = bin_weights(ivar, mean_and_std(tokens)[1], self.config.ivar_weighted)
        return MaskedSpectra(tokens, masks, weights.unfold(1, encoder.slice_size, encoder.slice_stride))

    def finite(self, inputs: MaskedSpectra) -> Tensor:
        parts = (inputs.tokens, inputs.weights)
        return torch.stack([torch.isfinite(part).flatten(1).all(dim=1) for part in parts]).all(dim=0)

    def accumulate(self, engine: Engine, inputs: MaskedSpectra, step: int) -> dict[str, Tensor | float]:
        chunks = inputs.split(self._micro_batch)
        count = len(inputs.tokens)
        loss = inputs.tokens.new_zeros(())
        for number, chunk in enumerate(chunks):
            predicted = engine.forward(mask_tokens(chunk.tokens, chunk.masks))
            part = masked_errors(predicted, chunk).sum() / count
            engine.backward(part, last=number == len(chunks) - 1)
            loss += part.detach()
        return {
            "loss": loss,
            # What the answer "everywhere the mean of the spectrum" would cost.
            "loss_of_mean": masked_errors(torch.zeros_like(inputs.tokens), inputs).mean(),
            "masked_share": self.config.masks * self.config.mask_width / (self._tokens - 1),
        }

    def _masks(self, ids: np.ndarray) -> Tensor:
        return segment_masks(ids, self._key, self._tokens, self.config.masks, self.config.mask_width)


def masked_errors(predicted: Tensor, spectra: MaskedSpectra) -> Tensor:
    """The loss of each spectrum: the weighted mean of the squared errors in its masked tokens.

    Args:
        predicted: (n, tokens, slice_size + 2).

    Returns:
        (n,) float32, in squared standard deviations of the spectrum; 0 where every masked bin has weight 0.
    """
    weights = spectra.weights * spectra.masks[:, 1:, None]
    squares = (predicted[:, 1:, 2:].float() - spectra.tokens[:, 1:, 2:]).square()
    total = weights.sum(dim=(1, 2))
    return (weights * squares).sum(dim=(1, 2)) / torch.where(total > 0, total, 1.0)


def bin_weights(ivar: Tensor, std: Tensor, weighted: bool) -> Tensor:
    """What the error in each bin counts, relative to the others of its spectrum.

    Inverse variances range over orders of magnitude within one spectrum, and a few bins must not make its whole loss. A
    prediction has an error of its own, which adds to the flux's: with the variance v of the flux in units of the
    z-scored flux, 1 / (ivar std^2), a bin counts 1 / (v + PREDICTION_ERROR^2). Where noise prevails that is the inverse
    variance; where the flux is known far better than it can be predicted, all bins count alike.

    Args:
        ivar: (n, bins), inverse variance of the flux; 0 = masked.
        std: (n, 1), standard deviation that the z-score divided by.
        weighted: by the inverse variance; else all bins that are not masked count alike.

    Returns:
        (n, bins) float32.
    """
    if not weighted:
        return (ivar > 0).float()
    variance = 1 / (ivar.float() * std.square())
    return torch.where(ivar > 0, 1 / (variance + PREDICTION_ERROR**2), 0.0)
