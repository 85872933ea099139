"""What a run minimises. One class an objective, told apart by ``name``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from astroclip_dist.config.augmentation import ApplyProbability, ImageAugmentation
from astroclip_dist.config.model import CrossAttentionHead, ImageEncoder, PrototypeHead, SpectrumEncoder
from astroclip_dist.config.strict import Section
from astroclip_dist.config.units import Length, TrainingLength
from astroclip_dist.config.url import Url
from astroclip_dist.errors import ConfigError


class ClipAlignment(Section):
    """Symmetric contrastive alignment of images and spectra over the global batch (AstroCLIP section 3.3)."""

    name: Literal["clip"] = "clip"
    image: ImageEncoder = ImageEncoder()
    spectrum: SpectrumEncoder = SpectrumEncoder()
    head: CrossAttentionHead = CrossAttentionHead()
    image_from: Url | None = Field(default=None, description="run whose image encoder this one starts from")
    spectrum_from: Url | None = Field(default=None, description="run whose spectrum encoder this one starts from")
    logit_scale: float = Field(default=15.5, gt=0)
    learn_logit_scale: bool = False
    freeze_backbones: bool = False
    augmentation: ImageAugmentation = ImageAugmentation()


class View(Section):
    """Size and number of one kind of crop for self-distillation, and how much of the cut-out it covers."""

    count: int = Field(gt=0)
    size: int = Field(gt=0, description="side of the crop, pixels")
    area: float | None = Field(
        default=None, gt=0, le=1, description="share of the image it covers, resampled; none: pixel for pixel"
    )


class PatchMasking(Section):
    """Which patches of global crops the student does not see (iBOT, Zhou et al. 2022)."""

    probability: float = Field(default=0.5, ge=0, le=1, description="of a crop to be masked at all")
    ratio: tuple[float, float] = Field(default=(0.1, 0.5), description="share of a masked crop's patches, uniform")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not 0 < self.ratio[0] <= self.ratio[1] < 1:
            raise ConfigError("ratio", list(self.ratio), "Write [smallest, largest], both between 0 and 1.")
        return self


class TeacherSchedule(Section):
    """How the teacher follows the student, and how sharp its answers are."""

    momentum: float = Field(default=0.994, ge=0, lt=1, description="at the start; rises to final_momentum as a cosine")
    final_momentum: float = Field(default=1.0, gt=0, le=1)
    temperature: float = Field(default=0.07, gt=0)
    first_temperature: float = Field(default=0.04, gt=0)
    temperature_warmup: Length = TrainingLength(0, "steps")


class ImageDino(Section):
    """Self-distillation of images with a momentum teacher (DINOv2; AstroCLIP section 5.1 and appendix A2)."""

    name: Literal["dinov2"] = "dinov2"
    image: ImageEncoder = ImageEncoder()
    global_views: View = View(count=2, size=144)
    local_views: View = View(count=8, size=60)
    rotation: bool = Field(default=False, description="of every view, by any angle")
    apply_probability: ApplyProbability = Field(
        default="paper", description="upstream_inverted: blur and noise are applied with 1 - p, as in AstroCLIP's code"
    )
    masking: PatchMasking = PatchMasking()
    head: PrototypeHead = PrototypeHead()
    separate_heads: bool = Field(default=True, description="one head for class tokens, another for patches")
    targets: Literal["centring", "sinkhorn"] = "centring"
    student_temperature: float = Field(default=0.1, gt=0)
    teacher: TeacherSchedule = TeacherSchedule()
    dino_weight: float = Field(default=1.0, ge=0)
    ibot_weight: float = Field(default=1.0, ge=0)
    koleo_weight: float = Field(default=0.1, ge=0)
    cohort: int | None = Field(
        default=None,
        gt=0,
        description="consecutive samples among which KoLeo looks for neighbours and stochastic depth chooses; "
        "those of one lane if unset",
    )
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="share of crops that skip a residual branch")
    frozen_prototypes: Length | None = Field(default=None, description="how long the last layer stays as it starts")

    @model_validator(mode="after")
    def _views_fit(self) -> Self:
        for field, view in (("global_views", self.global_views), ("local_views", self.local_views)):
            if view.size % self.image.patch:
                raise ConfigError(
                    f"{field}.size", view.size, f"It must be a multiple of image.patch = {self.image.patch}."
                )
        if self.global_views.size != self.image.crop:
            raise ConfigError(
                "global_views.size", self.global_views.size, f"Set it to image.crop = {self.image.crop}, or that to it."
            )
        if self.local_views.size > self.image.crop:
            raise ConfigError("local_views.size", self.local_views.size, f"At most image.crop = {self.image.crop}.")
        if self.global_views.count != 2:
            raise ConfigError("global_views.count", self.global_views.count, "Self-distillation compares two.")
        return self


class MaskedSpectrum(Section):
    """Filling in of masked stretches of a spectrum (AstroCLIP sections 2.2 and 5.2)."""

    name: Literal["masked_spectrum"] = "masked_spectrum"
    spectrum: SpectrumEncoder = SpectrumEncoder()
    masks: int = Field(default=6, gt=0, description="masked stretches, one in each equal part of the spectrum")
    mask_width: int = Field(default=30, gt=0, description="tokens of each stretch")
    ivar_weighted: bool = Field(default=False, description="errors count by the inverse variance of the flux")

    @model_validator(mode="after")
    def _masks_hide_something(self) -> Self:
        size, stride = self.spectrum.slice_size, self.spectrum.slice_stride
        if (self.mask_width + 1) * stride <= size:
            raise ConfigError(
                "mask_width",
                self.mask_width,
                f"Slices of {size} bins every {stride} overlap so much that all of a masked stretch can be read from "
                f"its neighbours: make it at least {size // stride}.",
            )
        return self


def _name_of(objective: Any) -> str:
    """The alignment is meant where no name is given."""
    return objective.get("name", "clip") if isinstance(objective, dict) else getattr(objective, "name", "clip")


Objective = Annotated[
    Annotated[ClipAlignment, Tag("clip")]
    | Annotated[ImageDino, Tag("dinov2")]
    | Annotated[MaskedSpectrum, Tag("masked_spectrum")],
    Discriminator(_name_of),
]
