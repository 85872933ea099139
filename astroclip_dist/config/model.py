"""Sizes of encoders and heads."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from astroclip_dist.config.strict import Section
from astroclip_dist.errors import ConfigError

Stretch = Literal["rgb", "asinh", "zscore"]


class BandScale(Section):
    """Mean and standard deviation of the pixels of each band, g, r, z, nanomaggies."""

    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class TransformerSize(Section):
    """Width, depth and heads of a pre-norm transformer; the MLP is ``mlp_ratio`` times as wide."""

    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(gt=0)
    mlp_ratio: float = Field(default=4.0, gt=0)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ConfigError("heads", self.heads, f"It must divide width = {self.width}.")
        return self


class ImageEncoder(TransformerSize):
    """Vision transformer over a crop of the image (default: ViT-L/12 at 144 px, AstroCLIP section 3.1)."""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    crop: int = Field(default=144, gt=0, description="side of the square crop, pixels")
    patch: int = Field(default=12, gt=0, description="side of a patch, pixels")
    stretch: Stretch = "rgb"
    zscore: BandScale | None = Field(default=None, description="for stretch zscore: of the training split")
    layer_scale: float | None = 1e-5
    registers: int = Field(default=0, ge=0, description="tokens without a patch (Darcet et al. 2024)")

    @model_validator(mode="after")
    def _patches_fill_crop(self) -> Self:
        if self.crop % self.patch:
            raise ConfigError("crop", self.crop, f"It must be a multiple of patch = {self.patch}.")
        return self

    @model_validator(mode="after")
    def _zscore_has_its_numbers(self) -> Self:
        if (self.stretch == "zscore") != (self.zscore is not None):
            raise ConfigError(
                "zscore",
                self.zscore,
                "Stretch zscore needs the mean and std of g, r, z in the training split, and only it does: write "
                "zscore: {mean: [g, r, z], std: [g, r, z]} with the numbers that `astroclip shards info` prints.",
            )
        return self


class SpectrumEncoder(TransformerSize):
    """Transformer over overlapping slices of the spectrum (default: SpecFormer, AstroCLIP section 3.2)."""

    width: int = 768
    depth: int = 6
    heads: int = 6
    slice_size: int = Field(default=20, gt=0, description="wavelength bins in a token")
    slice_stride: int = Field(default=10, gt=0, description="bins from one token's start to the next's")
    class_token: bool = Field(default=False, description="a token in front that stands for the whole spectrum")
    ivar_aware: bool = Field(default=False, description="bins of zero inverse variance count for nothing")
    weighted_mean: bool = Field(default=False, description="with ivar_aware: the mean is weighted by it")

    @model_validator(mode="after")
    def _no_gaps(self) -> Self:
        if self.slice_stride > self.slice_size:
            raise ConfigError(
                "slice_stride", self.slice_stride, f"Above slice_size = {self.slice_size} bins would be lost."
            )
        return self

    @model_validator(mode="after")
    def _weights_are_read(self) -> Self:
        if self.weighted_mean and not self.ivar_aware:
            raise ConfigError("weighted_mean", True, "The weights are inverse variances: set ivar_aware: true.")
        return self


class CrossAttentionHead(Section):
    """Learned-query cross-attention pooling and MLP to the shared embedding (AstroCLIP section 3.3)."""

    embedding: int = Field(default=1024, gt=0)
    heads: int = Field(default=4, gt=0)
    mlp_ratio: float = Field(default=4.0, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide_embedding(self) -> Self:
        if self.embedding % self.heads:
            raise ConfigError("heads", self.heads, f"It must divide embedding = {self.embedding}.")
        return self


class PrototypeHead(Section):
    """Projection to the prototypes that student and teacher agree on (DINO, Caron et al. 2021)."""

    layers: int = Field(default=3, gt=0, description="linear layers before the prototypes")
    hidden: int = Field(default=2048, gt=0)
    bottleneck: int = Field(default=256, gt=0)
    prototypes: int = Field(default=65_536, gt=0)
