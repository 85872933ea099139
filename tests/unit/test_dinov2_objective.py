"""Self-distillation in one process, against its equations written out crop by crop."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from astroclip_dist.config import parse_config
from astroclip_dist.config.objective import ImageDino
from astroclip_dist.errors import ConfigError
from astroclip_dist.models.image_encoder import ImageTransformer
from astroclip_dist.objectives.dinov2.crops import Crops
from astroclip_dist.objectives.dinov2.module import Distiller
from astroclip_dist.objectives.dinov2.objective import cohort_of
from astroclip_dist.objectives.dinov2.sinkhorn import sinkhorn_knopp
from astroclip_dist.parallel.process_group import join, leave
from tests.bare_training import BareTraining
from tests.unit.dinov2_training import data, module, objective, training

__all__ = ["data"]


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """A process group of this process."""
    ranks = join("cpu", 60.0)
    yield
    leave(ranks)


def answers(part: Distiller, crop: Tensor, mask: Tensor | None, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of one crop's class token and of its chosen patches, and its class token."""
    (tokens,) = part.encoder.encode([crop[None]], None if mask is None else [mask[None]])
    patches = tokens[0, part.encoder.first_patch :][chosen]
    return part.class_head(tokens[:, 0])[0], (part.patch_head or part.class_head)(patches), tokens[0, 0]


def written_out(
    session: BareTraining, crops: Crops, sharpen: Callable[[str, Tensor], Tensor]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Loss of a batch, the student's gradients, and the teacher's logits for classes and patches, in float64.

    Args:
        sharpen: makes targets of the teacher's logits, (n, 64), of ``class`` tokens or of a ``patch`` each.
    """
    model, config = copy.deepcopy(module(session)).double(), objective(session).config
    views = crops.global_crops.double().unflatten(0, (2, -1))
    local = crops.local_crops.double().unflatten(0, (3, -1))
    masks, n = crops.masks.unflatten(0, (2, -1)), crops.samples
    nothing = torch.zeros(0, dtype=torch.int64)
    with torch.no_grad():
        teacher = [[answers(model.teacher, views[v, i], None, masks[v, i]) for i in range(n)] for v in range(2)]
    class_logits = torch.stack([teacher[v][i][0] for v in range(2) for i in range(n)])
    patch_logits = torch.cat([teacher[v][i][1] for v in range(2) for i in range(n)])
    class_targets = sharpen("class", class_logits).view(2, n, -1)
    patch_targets = list(sharpen("patch", patch_logits).split(masks.flatten(0, 1).sum(dim=1).tolist()))
    student = [[answers(model.student, views[v, i], masks[v, i], masks[v, i]) for i in range(n)] for v in range(2)]
    student += [[answers(model.student, local[v, i], None, nothing) for i in range(n)] for v in range(3)]

    pairs = [(t, s) for t, s in itertools.product(range(2), range(5)) if t != s]
    dino = sum(F.cross_entropy(student[s][i][0] / 0.1, class_targets[t, i]) for t, s in pairs for i in range(n))
    masked = [(v, i) for v in range(2) for i in range(n) if masks[v, i].any()]
    assert 0 < len(masked) < 2 * n
    ibot = sum(F.cross_entropy(student[v][i][1] / 0.1, patch_targets[v * n + i]) for v, i in masked)
    koleo = torch.zeros((), dtype=torch.float64)
    for v, i in itertools.product(range(2), range(n)):
        lane = range(i - i % 4, i - i % 4 + 4)
        points = F.normalize(torch.stack([student[v][j][2] for j in lane]), dim=1)
        distances = [torch.dist(points[i % 4], points[j]) for j in range(4) if j != i % 4]
        koleo = koleo - torch.stack(distances).min().log() / n
    loss = config.dino_weight * dino / (len(pairs) * n) + config.ibot_weight * ibot / (2 * n)
    loss = loss + config.koleo_weight * koleo
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, {"class": class_logits, "patch": patch_logits}


@pytest.mark.parametrize("targets", ["centring", "sinkhorn"])
@pytest.mark.parametrize("separate", ["true", "false"])
def test_loss_and_gradients_are_those_of_the_equations(data: str, targets: str, separate: str) -> None:
    options = f"targets: {targets}\n  separate_heads: {separate}\n  ibot_weight: 0.7\n  masking: {{probability: 0.6}}"
    session = training(data, options)
    session.train(0, 2)
    batch = session.batches(2, 3)[0]
    inputs = objective(session).prepare(batch)
    centres = {name: value.clone().double() for name, value in objective(session).state().items()}

    def sharpen(kind: str, logits: Tensor) -> Tensor:
        if targets == "sinkhorn":
            return sinkhorn_knopp(logits, 0.07)
        return ((logits - centres[f"{kind}_centre"]) / 0.07).softmax(dim=1)

    loss, gradients, logits = written_out(session, inputs[0], sharpen)
    terms = objective(session).accumulate(session.engine, inputs, 2)
    assert float(terms["loss"]) == pytest.approx(loss.item(), rel=1e-5)
    assert float(terms["loss"]) == pytest.approx(
        float(terms["dino_loss"]) + 0.7 * float(terms["ibot_loss"]) + 0.1 * float(terms["koleo_loss"]), rel=1e-5
    )
    found = {name: p.grad for name, p in module(session).named_parameters() if p.requires_grad}
    assert found.keys() == gradients.keys()
    for name, expected in gradients.items():
        torch.testing.assert_close(found[name], expected.float(), rtol=1e-3, atol=2e-5, msg=name)
    objective(session).after_step(session.engine, 2)
    for kind, centre in centres.items():
        moved = 0.9 * centre + 0.1 * logits[kind.removesuffix("_centre")].mean(dim=0)
        torch.testing.assert_close(objective(session).state()[kind], moved.float(), rtol=1e-5, atol=1e-6)
    assert len(centres) == (2 if targets == "centring" else 0)


def test_parts_of_the_loss(data: str) -> None:
    """Two pairs of global views, six with a local one."""
    session = training(data)
    session.train(0, 1)
    terms = {name: float(value) for name, value in session.terms.items()}
    mean = (2 * terms["dino_global_loss"] + 6 * terms["dino_local_loss"]) / 8
    assert terms["dino_loss"] == pytest.approx(mean, rel=1e-5)
    assert terms["dino_global_loss"] != pytest.approx(terms["dino_local_loss"], rel=1e-6)
    assert (terms["teacher_temperature"], terms["teacher_momentum"]) == (0.07, 0.9)
    assert 0 < terms["masked_patches"] < 0.5


@pytest.mark.parametrize("targets", ["centring", "sinkhorn"])
def test_micro_batches_give_the_same_gradients(data: str, targets: str) -> None:
    """Of one cohort each, with stochastic depth and KoLeo."""
    found = []
    for micro_size in ("null", "4"):
        session = training(data, f"targets: {targets}\n  drop_path: 0.4", micro_size)
        session.train(0, 1)
        inputs = objective(session).prepare(session.batches(1, 2)[0])
        assert len(inputs) == (1 if micro_size == "null" else 2)
        loss = objective(session).accumulate(session.engine, inputs, 1)["loss"]
        grads = [p.grad.flatten() for p in module(session).parameters() if p.grad is not None]
        found.append(torch.cat([torch.as_tensor(loss)[None], *grads]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_the_student_does_not_see_what_is_masked(data: str) -> None:
    session = training(data)
    (crops,) = objective(session).prepare(session.batches(0, 1)[0])
    pixels = crops.masks.view(-1, 1, 4, 4).repeat_interleave(6, dim=2).repeat_interleave(6, dim=3)
    other = torch.where(pixels, 1 - crops.global_crops, crops.global_crops)
    with torch.no_grad():
        seen = [
            module(session)(images, crops.masked, crops.local_crops, crops.masks)
            for images in (crops.global_crops, other)
        ]
        asked = [module(session)(images, crops.masked) for images in (crops.global_crops, other)]
    assert all(torch.equal(left, right) for left, right in zip(*seen, strict=True))
    assert not torch.allclose(asked[0].patches, asked[1].patches)


def test_the_teacher_follows_and_prototypes_stay_for_a_time(data: str) -> None:
    session = training(data, "frozen_prototypes: 1 steps")
    model = module(session)
    assert all(torch.equal(*pair) for pair in zip(model.teacher.parameters(), model.student.parameters(), strict=True))
    for step, moves in ((0, False), (1, True)):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        session.train(step, step + 1)
        momentum = float(session.terms["teacher_momentum"])
        for name, value in model.state_dict().items():
            if name.startswith("teacher."):
                student = model.state_dict()[name.replace("teacher", "student", 1)]
                assert torch.equal(value, torch.lerp(before[name], student, 1 - momentum)), name
            elif name.endswith("prototypes"):
                assert torch.equal(value, before[name]) == (not moves), name
            elif name.endswith("weight"):
                assert not torch.equal(value, before[name]), name


def test_a_step_that_is_not_finite_leaves_no_trace(data: str) -> None:
    session, undisturbed = training(data), training(data)
    good = session.batches(0, 3)
    image = good[1].members["image"].clone()
    image[5] = torch.nan
    bad = replace(good[1], members={"image": image})
    expected = [undisturbed.step(batch, step) for step, batch in enumerate((good[0], good[2]))]
    assert session.step(good[0], 0) == expected[0]
    loss, _ = session.step(bad, 1)
    assert not np.isfinite(loss)
    assert objective(session).finite(objective(session).prepare(bad)).tolist() == [True] * 5 + [False] + [True] * 2
    assert session.step(good[2], 1) == expected[1]
    for left, right in zip(objective(session).state().values(), objective(undisturbed).state().values(), strict=True):
        assert torch.equal(left, right)
    for left, right in zip(module(session).parameters(), module(undisturbed).parameters(), strict=True):
        assert torch.equal(left, right)


# ---- what is kept of a run, and what is refused


def test_the_teachers_encoder_is_an_image_encoder(data: str) -> None:
    session = training(data)
    session.train(0, 1)
    config, teacher = objective(session).config, module(session).teacher.encoder
    encoder = ImageTransformer(config.image, 3)
    encoder.load_state_dict({name: value for name, value in teacher.state_dict().items() if name != "mask_token"})
    crops = objective(session).prepare(session.batches(0, 1)[0])[0].global_crops
    torch.testing.assert_close(encoder(crops), teacher([crops])[0])


def test_a_checkpoint_keeps_teacher_and_centres(data: str, tmp_path: Path) -> None:
    session = training(data)
    session.train(0, 2)
    session.save(str(tmp_path), 2)
    expected = session.train(2, 4)
    fresh = training(data)
    assert fresh.restore(str(tmp_path)) == 2
    assert fresh.train(2, 4) == expected


def cohort(batch: str, options: str) -> int:
    text = f"{{run: a, data: b, length: 1 steps, optimizer: {{lr: 1}}, batch: {{global_size: 8, {batch}}}, "
    config = parse_config(f"{text} objective: {{name: dinov2, {options}}}}}", "test")
    assert isinstance(config.objective, ImageDino)
    return cohort_of(config, config.objective)


@pytest.mark.parametrize(
    ("batch", "options", "field", "mend"),
    [
        ("lanes: 8", "", "objective.cohort", "objective.koleo_weight 0"),
        ("lanes: 2", "cohort: 3", "objective.cohort", "divide the 4 samples of a lane"),
        ("lanes: 2, micro_size: 2", "", "batch.micro_size", "objective.cohort to a divisor"),
        ("lanes: 2, micro_size: 2", "koleo_weight: 0, drop_path: 0.1", "batch.micro_size", "a divisor of it"),
        ("lanes: 2", "local_views: {count: 2, size: 150}", "local_views.size", "multiple of image.patch"),
        ("lanes: 2", "local_views: {count: 2, size: 156}", "local_views.size", "At most image.crop = 144"),
    ],
)
def test_sizes_that_do_not_fit(batch: str, options: str, field: str, mend: str) -> None:
    with pytest.raises(ConfigError, match=mend) as refused:
        cohort(batch, options)
    assert refused.value.field.endswith(field)


def test_cohorts_matter_to_those_alone_who_compare() -> None:
    assert cohort("lanes: 2, micro_size: 1", "koleo_weight: 0") == 4
    assert cohort("lanes: 2, micro_size: 2", "cohort: 2, drop_path: 0.3") == 2
