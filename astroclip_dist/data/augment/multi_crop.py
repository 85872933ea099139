"""Several views of each image for self-distillation: two global and eight local ones (AstroCLIP section 5.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from astroclip_dist.config.augmentation import ViewRecipe
from astroclip_dist.config.objective import ImageDino, View
from astroclip_dist.data.augment.published import FIRST_GLOBAL, LOCAL, SECOND_GLOBAL
from astroclip_dist.data.augment.views import Stretching, augment_together
from astroclip_dist.data.draws import stream_key
from astroclip_dist.data.streaming.batch_memory import BatchMemory
from astroclip_dist.errors import ConfigError


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


def plan_of(config: ImageDino) -> MultiCropPlan:
    """The views of a configuration, flipped both ways, with the published probabilities of blur and of noise."""

    def recipe(view: View, probability: float) -> ViewRecipe:
        return ViewRecipe(
            size=view.size,
            cutout_area=view.area,
            flips=True,
            flips_and_quarter_turns=False,
            rotation=config.rotation,
            blur=probability,
            noise=probability,
            apply_probability=config.apply_probability,
        )

    return MultiCropPlan(
        global_views=tuple(recipe(config.global_views, probability) for probability in (FIRST_GLOBAL, SECOND_GLOBAL)),
        local_views=(recipe(config.local_views, LOCAL),) * config.local_views.count,
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
