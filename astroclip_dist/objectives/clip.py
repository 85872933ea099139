"""CLIP alignment of images and spectra over the global batch (AstroCLIP section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from astroclip_dist.config.augmentation import ViewRecipe
from astroclip_dist.config.objective import ClipAlignment
from astroclip_dist.data.augment import augment
from astroclip_dist.data.batch_memory import BatchMemory
from astroclip_dist.data.dataset import Dataset
from astroclip_dist.data.draws import stream_key
from astroclip_dist.data.images import centre_crop, stretch
from astroclip_dist.data.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.data.spectra import slice_spectra
from astroclip_dist.data.stream import Batch
from astroclip_dist.errors import ConfigError, DataError
from astroclip_dist.models.two_tower import TwoTower
from astroclip_dist.parallel.contrastive import contrastive_loss
from astroclip_dist.parallel.engines import Engine


class Clip:
    """Trains the two-tower model.

    Args:
        config: sizes, augmentation, logit scale.
        dataset: whose layouts the model is built for.
        seed: of the run.
        micro_batch: samples of one rank in one pass.
        device: of this rank.
    """

    def __init__(
        self, config: ClipAlignment, dataset: Dataset, *, seed: int, micro_batch: int, device: torch.device
    ) -> None:
        image, spectrum = dataset.layout("image"), dataset.layout("spectrum")
        assert isinstance(image, ImageLayout)
        assert isinstance(spectrum, SpectrumLayout)
        if config.image.crop > image.size:
            raise ConfigError(
                "objective.image.crop", config.image.crop, f"The dataset's images have {image.size} pixels a side."
            )
        if config.spectrum.slice_size > spectrum.size:
            raise ConfigError(
                "objective.spectrum.slice_size", config.spectrum.slice_size, f"Spectra have {spectrum.size} bins."
            )
        self.config, self._image, self._spectrum = config, image, spectrum
        self.members: Sequence[str] = ("image", "spectrum", *(["ivar"] if config.spectrum.ivar_aware else []))
        self._view = ViewRecipe(size=config.image.crop, **config.augmentation.model_dump())
        self._seed, self._micro_batch, self._device = seed, micro_batch, device
        self._memory = BatchMemory()

    def build(self) -> TwoTower:
        return TwoTower(self.config, self._image, self._spectrum)

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        members = {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.members.items()}
        views = augment(
            members["image"],
            batch.draw_ids,
            stream_key("image view", self._seed),
            self._view,
            partial(stretch, how=self.config.image.stretch, zscore=self.config.image.zscore),
            self._memory,
        )
        return views, spectrum_tokens(members["spectrum"], self.config, members.get("ivar"))

    def accumulate(self, engine: Engine, inputs: tuple[Tensor, ...], key: int) -> dict[str, Tensor]:
        images, spectra = inputs
        chunks = list(zip(images.split(self._micro_batch), spectra.split(self._micro_batch), strict=True))
        if len(chunks) == 1:
            _seed(key, 0)
            image, spectrum, scale = engine.forward(*chunks[0])
            loss = contrastive_loss(image, spectrum, scale)
            engine.backward(loss, last=True)
        else:
            loss, scale = self._accumulate_in_two_passes(engine, chunks, key)
        return {"loss": loss.detach(), "logit_scale": scale.detach().squeeze()}

    def _accumulate_in_two_passes(
        self, engine: Engine, chunks: list[tuple[Tensor, Tensor]], key: int
    ) -> tuple[Tensor, Tensor]:
        """The negatives are the whole global batch, though only one micro-batch's activations fit: embed all without
        gradients, take the loss's gradient with respect to the embeddings, then embed again, chunk by chunk, and
        backpropagate that gradient (Gao et al. 2021, "Scaling deep contrastive learning batch size")."""
        with torch.no_grad():
            embedded = []
            for number, chunk in enumerate(chunks):
                _seed(key, number)
                embedded.append(engine.forward(*chunk))
        image = torch.cat([chunk[0] for chunk in embedded]).requires_grad_()
        spectrum = torch.cat([chunk[1] for chunk in embedded]).requires_grad_()
        scale = embedded[0][2].detach().clone().requires_grad_()
        loss = contrastive_loss(image, spectrum, scale)
        image_grad, spectrum_grad, scale_grad = torch.autograd.grad(loss, (image, spectrum, scale))
        parts = zip(image_grad.split(self._micro_batch), spectrum_grad.split(self._micro_batch), strict=True)
        for number, (chunk, (image_part, spectrum_part)) in enumerate(zip(chunks, parts, strict=True)):
            _seed(key, number)
            image, spectrum, scale = engine.forward(*chunk)
            surrogate = (image * image_part).sum() + (spectrum * spectrum_part).sum()
            surrogate = surrogate + (scale * scale_grad / len(chunks)).sum()
            engine.backward(surrogate, last=number == len(chunks) - 1)
        return loss, scale

    def after_step(self, engine: Engine) -> None:
        """Nothing follows a step of the alignment."""


def evaluation_inputs(
    images: Tensor | None, spectra: Tensor | None, config: ClipAlignment, ivar: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Inputs of the two-tower model without any augmentation: centre crop, stretch, slices.

    Args:
        images: (n, bands, H, W), nanomaggies; spectra: (n, bins), 1e-17 erg/s/cm2/A; ivar: (n, bins), their inverse
            variances, needed where the configuration says ``ivar_aware``.

    Raises:
        DataError: images smaller than the crop, or spectra without the inverse variances that the model needs.
    """
    views = None
    if images is not None:
        views = stretch(centre_crop(images, config.image.crop), config.image.stretch, config.image.zscore)
    return views, None if spectra is None else spectrum_tokens(spectra, config, ivar)


def spectrum_tokens(spectra: Tensor, config: ClipAlignment, ivar: Tensor | None) -> Tensor:
    options = config.spectrum
    if not options.ivar_aware:
        return slice_spectra(spectra, options.slice_size, options.slice_stride)
    if ivar is None:
        raise DataError("ivar", "absent", "objective.spectrum.ivar_aware needs the inverse variances of the spectra.")
    return slice_spectra(spectra, options.slice_size, options.slice_stride, ivar, weighted_mean=options.weighted_mean)


def _seed(key: int, micro_batch: int) -> None:
    # The same chunk must see the same dropout in both passes, and in a resumed run.
    torch.manual_seed((key + micro_batch) % 2**63)
