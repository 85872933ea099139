"""From galaxies to embeddings, with the encoders of any objective's checkpoint.

What stands for a galaxy follows the objective: after alignment what the heads pool into the shared space; after image
self-distillation the class token of the teacher; after masked-spectrum modelling the mean over the spectrum's tokens,
as in AstroCLIP's downstream code. (A class token is left out of that mean: no loss ever read it.) All are scaled to
unit length: search is by cosine, and one convention serves all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astroclip_dist.config.model import ImageEncoder, SpectrumEncoder
from astroclip_dist.config.objective import ClipAlignment, ImageDino, MaskedSpectrum, Objective
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.embed.table import MODALITIES, Modality
from astroclip_dist.errors import DataError
from astroclip_dist.models.image_encoder import ImageTransformer
from astroclip_dist.models.spectrum_encoder import SpectrumTransformer
from astroclip_dist.models.two_tower import TwoTower
from astroclip_dist.objectives.inputs import image_inputs, spectrum_tokens
from astroclip_dist.store import Store
from astroclip_dist.train.weights import load_weights


@dataclass(frozen=True)
class _Tower:
    """How one modality becomes vectors: the encoder's inputs, (n, ...), to (n, size)."""

    config: ImageEncoder | SpectrumEncoder
    size: int
    pool: Callable[[Tensor], Tensor]


class Embedder:
    """Embeds images, spectra or both.

    Attributes:
        sizes: numbers in an embedding of each modality that is embedded.
        members: which members of a sample it reads, of ``image``, ``spectrum``, ``ivar``.
    """

    def __init__(self, towers: Mapping[Modality, _Tower]) -> None:
        self._towers = towers
        self.sizes = {modality: tower.size for modality, tower in towers.items()}
        weighted = any(
            isinstance(tower.config, SpectrumEncoder) and tower.config.ivar_aware for tower in towers.values()
        )
        self.members: tuple[str, ...] = (*towers, *(["ivar"] if weighted else []))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return tuple(self.sizes)

    @torch.no_grad()
    def __call__(self, images: Tensor | None, spectra: Tensor | None, ivar: Tensor | None) -> dict[Modality, Tensor]:
        """Embeddings of what is given, of those modalities that are embedded.

        Args:
            images: (n, bands, H, W), nanomaggies.
            spectra: (m, bins), 1e-17 erg/s/cm2/A; ivar: (m, bins), their inverse variances, where ``members`` has them.

        Returns:
            modality -> (n, size) or (m, size) float32 unit vectors.
        """
        found: dict[Modality, Tensor] = {}
        for modality, tower in self._towers.items():
            given = images if modality == "image" else spectra
            if given is None:
                continue
            inputs = (
                image_inputs(given, tower.config)
                if isinstance(tower.config, ImageEncoder)
                else spectrum_tokens(given, tower.config, ivar)
            )
            found[modality] = F.normalize(tower.pool(inputs).float(), dim=-1)
        return found


def load_embedder(objective: Objective, dataset: Dataset, checkpoint: Store, device: torch.device) -> Embedder:
    """The encoders of a checkpoint, for those of their modalities that a dataset has.

    Args:
        objective: of the run that made the checkpoint.

    Raises:
        DataError: the dataset has no modality that was trained, or lacks inverse variances that the encoder needs; its
            layout is not the trained one (names the first tensor that does not fit); a damaged checkpoint.
    """
    with torch.device("meta"):
        module, part, towers = _describe(objective, dataset)
    if not towers:
        has = [modality for modality in MODALITIES if getattr(dataset, modality) is not None]
        wanted = "images" if isinstance(objective, ImageDino) else "spectra"
        raise DataError(
            ", ".join(dataset.urls), f"only {' and '.join(has)}", f"A run of {objective.name} embeds {wanted}."
        )
    embedder = Embedder(towers)
    if "ivar" in embedder.members:
        dataset.layout("ivar")  # refuses a dataset without
    load_weights(module, checkpoint, part, device)
    return embedder


def _describe(objective: Objective, dataset: Dataset) -> tuple[nn.Module, str, dict[Modality, _Tower]]:
    """The module that embeds, where it lies in the model that was trained, and its towers."""
    image, spectrum = dataset.image, dataset.spectrum
    towers: dict[Modality, _Tower] = {}
    if isinstance(objective, ClipAlignment):
        model, size = TwoTower(objective, image, spectrum), objective.head.embedding
        if image is not None:
            towers["image"] = _Tower(objective.image, size, lambda images: model(images, None)[0])
        if spectrum is not None:
            towers["spectrum"] = _Tower(objective.spectrum, size, lambda spectra: model(None, spectra)[1])
        return model, "", towers
    if isinstance(objective, ImageDino) and image is not None:
        teacher = ImageTransformer(objective.image, len(image.bands))
        towers["image"] = _Tower(objective.image, objective.image.width, lambda images: teacher(images)[:, 0])
        return teacher, "teacher.encoder.", towers
    if isinstance(objective, MaskedSpectrum) and spectrum is not None:
        encoder, width = SpectrumTransformer(objective.spectrum, spectrum.size), objective.spectrum.width
        towers["spectrum"] = _Tower(
            objective.spectrum, width, lambda spectra: encoder(spectra)[:, encoder.first_slice :].mean(dim=1)
        )
        return encoder, "encoder.", towers
    return nn.Module(), "", {}
