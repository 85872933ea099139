"""The model that fills in masked stretches of spectra: the spectrum encoder, and one linear layer back to its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from astroclip_dist.config.model import SpectrumEncoder
from astroclip_dist.models.spectrum_encoder import SpectrumTransformer


class MaskedSpectrumModel(nn.Module):
    """Predicts the tokens of ``data.preprocessing.spectra.slice_spectra`` from those of them that are not masked."""

    def __init__(self, config: SpectrumEncoder, size: int) -> None:
        """``size``: bins of a spectrum."""
        super().__init__()
        self.encoder = SpectrumTransformer(config, size)
        self.head = nn.Linear(config.width, config.slice_size + 2)
        # As published, the head starts like the encoder's own layers.
        self.linear_std = self.encoder.linear_std

    def forward(self, masked: Tensor) -> Tensor:
        """(n, tokens, slice_size + 2), masked tokens all 0 (``mask_tokens``), to predictions of all of them."""
        return self.head(self.encoder(masked)[:, self.encoder.first_slice :])


def mask_tokens(tokens: Tensor, masks: Tensor) -> Tensor:
    """Replace the masked of (n, tokens, slice_size + 2) tokens by zeros (AstroCLIP section 5.2).

    Args:
        masks: (n, tokens) bool.
    """
    return torch.where(masks[..., None], 0.0, tokens)
