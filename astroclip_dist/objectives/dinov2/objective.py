"""Self-distillation of images (DINOv2, Oquab et al. 2023; AstroCLIP section 5.1 and appendix A2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from astroclip_dist.config import RunConfig
from astroclip_dist.config.objective import ImageDino
from astroclip_dist.config.schedule import Cosine, Ramp
from astroclip_dist.data.streaming.stream import Batch
from astroclip_dist.errors import ConfigError
from astroclip_dist.objectives.base import Objective, Setting
from astroclip_dist.objectives.dinov2.crops import CropMaker, Crops
from astroclip_dist.objectives.dinov2.koleo import koleo_loss
from astroclip_dist.objectives.dinov2.losses import cross_view_loss, masked_patch_loss
from astroclip_dist.objectives.dinov2.module import Answers, SelfDistillation, StudentAnswers
from astroclip_dist.objectives.dinov2.targets import CentredTargets, SinkhornTargets, Targets
from astroclip_dist.parallel.engines import Engine


class DinoObjective(Objective):
    """Trains the student; the teacher follows.

    Loss and gradients of a global batch depend neither on the world size nor on micro-batches: targets are balanced
    over all of it, and what compares samples with one another (KoLeo, stochastic depth) does so within cohorts of
    consecutive samples, which are never divided.
    """

    def __init__(self, setting: Setting, config: ImageDino) -> None:
        """
        Raises:
            DataError: the dataset has no images.
            ConfigError: they are smaller than the crop; or cohorts that do not fit lanes or micro-batches.
        """
        self.config, self._setting = config, setting
        self.members: Sequence[str] = ("image",)
        self._image = setting.image_layout(config.image.crop)
        self._cohort = cohort_of(setting.config, config)
        self._make = CropMaker(config, setting.config.seed, self._cohort)
        self._targets: Targets = (
            SinkhornTargets()
            if config.targets == "sinkhorn"
            else CentredTargets(config.head.prototypes, setting.device)
        )
        teacher, steps = config.teacher, setting.steps
        warmup = steps.of(teacher.temperature_warmup)
        self._temperature = Ramp(teacher.first_temperature, teacher.temperature, warmup)
        self._momentum = Cosine(teacher.momentum, teacher.final_momentum, steps.total)
        self._frozen_steps = steps.of(config.frozen_prototypes)

    def build(self) -> SelfDistillation:
        with torch.device("meta"):
            return SelfDistillation(self.config, len(self._image.bands))

    def prepare(self, batch: Batch) -> list[Crops]:
        images = batch.members["image"].to(self._setting.device, non_blocking=True)
        return self._make(images, batch.draw_ids, self._setting.config.micro_batch)

    def finite(self, inputs: list[Crops]) -> Tensor:
        return torch.cat([crops.finite() for crops in inputs])

    def accumulate(self, engine: Engine, inputs: list[Crops], step: int) -> dict[str, Tensor | float]:
        temperature = self._temperature(step)
        targets = self._targets.of(self._ask_teacher(engine, inputs), temperature)
        terms: dict[str, Tensor | float] = defaultdict(float)
        for number, (crops, wanted) in enumerate(zip(inputs, targets, strict=True), start=1):
            found = self._losses(engine, crops, wanted)
            # Micro-batches are of equal size: the mean of their losses is the loss of them all.
            engine.backward(found["loss"] / len(inputs), last=number == len(inputs))
            for name, value in found.items():
                terms[name] += value.detach() / len(inputs)
        masked, patches = sum(crops.masked.numel() for crops in inputs), sum(crops.masks.numel() for crops in inputs)
        rates = {"teacher_temperature": temperature, "teacher_momentum": self._momentum(step)}
        return {**terms, **rates, "masked_patches": masked / patches}

    def _ask_teacher(self, engine: Engine, inputs: list[Crops]) -> Iterator[Answers]:
        for crops in inputs:
            # Yielded outside: what goes on meanwhile needs its gradients.
            with torch.no_grad():
                answers = engine.forward(crops.global_crops, crops.masked)
            yield answers

    def _losses(self, engine: Engine, crops: Crops, targets: Answers) -> dict[str, Tensor]:
        """The loss of a micro-batch, and its terms before they are weighted."""
        config = self.config
        student: StudentAnswers = engine.forward(
            crops.global_crops, crops.masked, crops.local_crops, crops.masks, crops.global_kept, crops.local_kept
        )
        views = student.classes.unflatten(0, (-1, crops.samples))
        wanted = targets.classes.unflatten(0, (-1, crops.samples))
        dino = cross_view_loss(views, wanted, config.student_temperature)
        ibot = masked_patch_loss(
            student.patches, targets.patches, crops.weights, len(crops.global_crops), config.student_temperature
        )
        loss = config.dino_weight * dino.of_all + config.ibot_weight * ibot
        terms = {
            "dino_loss": dino.of_all,
            "dino_global_loss": dino.of_global,
            "dino_local_loss": dino.of_local,
            "ibot_loss": ibot,
        }
        if config.koleo_weight:
            # A sum over the global views, as the published weight is for.
            terms["koleo_loss"] = len(wanted) * koleo_loss(student.features[: len(crops.global_crops)], self._cohort)
            loss = loss + config.koleo_weight * terms["koleo_loss"]
        return {"loss": loss, **terms}

    def frozen(self, step: int) -> tuple[str, ...]:
        return ("prototypes",) if step < self._frozen_steps else ()

    def after_step(self, engine: Engine, step: int) -> None:
        """The teacher and the centres follow."""
        module = engine.module
        assert isinstance(module, SelfDistillation)
        engine.average(module.teacher, module.student, self._momentum(step))
        self._targets.update()

    def discard(self) -> None:
        self._targets.discard()

    def state(self) -> dict[str, Tensor]:
        return self._targets.state()


def cohort_of(run: RunConfig, config: ImageDino) -> int:
    """Consecutive samples among which KoLeo looks for neighbours, and stochastic depth chooses.

    Raises:
        ConfigError: a lane's samples of a step, or a micro-batch, are not whole cohorts; or KoLeo has no neighbours.
    """
    of_lane = run.batch.global_size // run.batch.lanes
    cohort = config.cohort or of_lane
    if of_lane % cohort:
        raise ConfigError(
            "objective.cohort",
            cohort,
            f"It must divide the {of_lane} samples of a lane (batch.global_size / batch.lanes), which are together on "
            "one rank whatever the world size.",
        )
    if config.koleo_weight and cohort == 1:
        raise ConfigError(
            "objective.cohort",
            cohort,
            "KoLeo compares at least 2 samples of a lane: let batch.global_size / batch.lanes be larger, or "
            "objective.koleo_weight 0.",
        )
    if (config.koleo_weight or config.drop_path) and run.micro_batch % cohort:
        raise ConfigError(
            "batch.micro_size",
            run.micro_batch,
            f"KoLeo and stochastic depth compare {cohort} samples with one another: make it a multiple of that, or set "
            f"objective.cohort to a divisor of it and of the {of_lane} samples of a lane.",
        )
    return cohort
