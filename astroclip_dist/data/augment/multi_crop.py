"""Several views of each image for self-distillation: two global and eight local ones (AstroCLIP section 5.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from astroclip_dist.config.augmentation import ApplyProbability, ViewRecipe
from astroclip_dist.data.augment.published import (
    FIRST_GLOBAL,
    GLOBAL_AREA,
    GLOBAL_SIZE,
    LOCAL,
    LOCAL_AREA,
    LOCAL_SIZE,
    LOCAL_VIEWS,
    SECOND_GLOBAL,
)
from astroclip_dist.data.augment.views import Stretching, augment_together
from astroclip_dist.data.batch_memory import BatchMemory
from astroclip_dist.data.draws import stream_key
from astroclip_dist.errors import ConfigError

Convention = Literal["paper", "upstream"]


@dataclass(frozen=True)
class MultiCropPlan:
    """The recipes of an image's views. Global ones differ in their probabilities alone, and so do local ones."""

    global_views: tuple[ViewRecipe, ...]
    local_views: tuple[ViewRecipe, ...]

    def __post_init__(self) -> None:
        for name in ("global_views", "local_views"):
            recipes: tuple[ViewRecipe, ...] = getattr(self, name)
            free = {"blur": 0.0, "noise": 0.0, "apply_probability": "paper"}
            if len({repr(recipe.model_copy(update=free)) for recipe in recipes}) != 1:
                raise ConfigError(
                    name, "too different", "Only the probabilities of blur and noise may differ between them."
                )


@dataclass(frozen=True)
class MultiCrop:
    """Views of n images: (n, 3, size, size) float32 each, in the plan's order."""

    global_views: list[Tensor]
    local_views: list[Tensor]


def published_plan(convention: Convention, apply_probability: ApplyProbability = "paper") -> MultiCropPlan:
    """Two global views of 144 px and eight local ones of 60 px.

    Args:
        convention: ``paper`` is the text: cut-outs of 94.7 and 39.4 per cent of the area, resampled to the view's size,
            flips, and rotation by any angle. ``upstream`` is the code: crops of 144 and 60 px, pixel for pixel, flips.
        apply_probability: ``upstream_inverted`` blurs and adds noise with the probabilities 0, 0.9, 0.5 that the code's
            ``keep_p`` has, instead of 1, 0.1, 0.5.
    """

    def recipe(size: int, area: float, probability: float) -> ViewRecipe:
        return ViewRecipe(
            size=size,
            cutout_area=area if convention == "paper" else None,
            flips=True,
            flips_and_quarter_turns=False,
            rotation=convention == "paper",
            blur=probability,
            noise=probability,
            apply_probability=apply_probability,
        )

    return MultiCropPlan(
        global_views=tuple(recipe(GLOBAL_SIZE, GLOBAL_AREA, p) for p in (FIRST_GLOBAL, SECOND_GLOBAL)),
        local_views=tuple(recipe(LOCAL_SIZE, LOCAL_AREA, LOCAL) for _ in range(LOCAL_VIEWS)),
    )


def multi_crop(
    images: Tensor,
    sample_ids: np.ndarray,
    key: int,
    plan: MultiCropPlan,
    stretch: Stretching | None = None,
    memory: BatchMemory | None = None,
) -> MultiCrop:
    """All views of a plan; each is ``augment`` with a key of its own. Arguments and errors as there."""

    def views(kind: str, recipes: tuple[ViewRecipe, ...]) -> list[Tensor]:
        keys = [stream_key(f"{kind} view", key, number) for number in range(len(recipes))]
        return augment_together(images, sample_ids, keys, recipes, stretch, memory)

    return MultiCrop(views("global", plan.global_views), views("local", plan.local_views))
