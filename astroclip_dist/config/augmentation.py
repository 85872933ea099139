"""How random views of images are made. Every option is off by default but the random crop and the symmetries."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from astroclip_dist.config.strict import Section
from astroclip_dist.errors import ConfigError

ApplyProbability = Literal["paper", "upstream_inverted"]


class ImageAugmentation(Section):
    """Random views of an image during training, keyed by sample; evaluation takes the centre crop."""

    random_crop: bool = True
    jitter: int = Field(default=0, ge=0, description="without random_crop: the centre crop moves by up to so many px")
    cutout_area: float | None = Field(
        default=None, gt=0, le=1, description="share of the image that a crop covers, resampled; none: pixel for pixel"
    )
    flips_and_quarter_turns: bool = True
    flips: bool = Field(default=False, description="the two flips alone, without quarter turns")
    rotation: bool = Field(default=False, description="by any angle")
    size_scale: tuple[float, float] | None = Field(
        default=None, description="magnification, uniform between the two; Stein et al.: [0.9, 1.1]"
    )
    beyond_edge: Literal["reflect", "zero"] = Field(
        default="reflect", description="what rotation and scaling see outside of the image"
    )
    blur: float = Field(default=0.0, ge=0, le=1, description="probability of additional seeing")
    noise: float = Field(default=0.0, ge=0, le=1, description="probability of additional noise")
    apply_probability: ApplyProbability = Field(
        default="paper", description="upstream_inverted: blur and noise are applied with 1 - p, as in AstroCLIP's code"
    )
    reddening: bool = Field(default=False, description="additional dust of the Milky Way")

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if self.jitter and self.random_crop:
            raise ConfigError("jitter", self.jitter, "It moves the centre crop: set random_crop: false.")
        if self.flips and self.flips_and_quarter_turns:
            raise ConfigError("flips", self.flips, "Quarter turns are on as well: set flips_and_quarter_turns: false.")
        if self.size_scale is not None and not 0 < self.size_scale[0] <= self.size_scale[1]:
            raise ConfigError("size_scale", list(self.size_scale), "Write [smallest, largest], both above 0.")
        return self

    @property
    def resamples(self) -> bool:
        """Whether pixels are interpolated; otherwise views are exact copies of pixels."""
        return self.rotation or self.size_scale is not None or self.cutout_area is not None

    @property
    def blur_probability(self) -> float:
        return 1 - self.blur if self.apply_probability == "upstream_inverted" else self.blur

    @property
    def noise_probability(self) -> float:
        return 1 - self.noise if self.apply_probability == "upstream_inverted" else self.noise


class ViewRecipe(ImageAugmentation):
    """One kind of view: its size, and how it is made."""

    size: int = Field(gt=0, description="side of the view, pixels")
