"""DINOv2's losses against their definitions written out, and those of lightly; the head that they stand behind."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from astroclip_dist.config.model import PrototypeHead as PrototypeHeadConfig
from astroclip_dist.errors import ConfigError
from astroclip_dist.models.initial import InitialValues, initialise
from astroclip_dist.models.prototype_head import PrototypeHead
from astroclip_dist.objectives.dinov2 import losses
from astroclip_dist.objectives.dinov2.koleo import koleo_loss
from astroclip_dist.objectives.dinov2.losses import cross_view_loss, masked_patch_loss
from tests.rank_pool import RankPool

SAMPLES, PROTOTYPES, TEMPERATURE = 8, 13, 0.1


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written_out(student: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of all pairs of different views."""
    terms = [
        F.cross_entropy(view / TEMPERATURE, target)
        for (i, target), (j, view) in itertools.product(enumerate(targets), enumerate(student))
        if i != j
    ]
    return torch.stack(terms).mean()


@pytest.mark.parametrize("tile", [1, 3 * PROTOTYPES, 10**6])
@pytest.mark.parametrize(("views", "global_views"), [(10, 2), (2, 2), (5, 1), (4, 3)])
def test_cross_view_loss(views: int, global_views: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    student = normal(views, SAMPLES, PROTOTYPES).requires_grad_()
    targets = normal(global_views, SAMPLES, PROTOTYPES, seed=1).softmax(dim=-1).requires_grad_()
    monkeypatch.setattr(losses, "_CPU_TILE", tile)
    loss = cross_view_loss(student, targets, TEMPERATURE).of_all
    expected = written_out(student, targets.detach())
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    gradient, none = torch.autograd.grad(loss, (student, targets), allow_unused=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, student)[0], rtol=0, atol=1e-12)
    assert none is None


def test_cross_view_loss_has_the_weights_of_dinov2() -> None:
    """There: a loss of 8 x 2 local and one of 2 crossed global pairs, each summed, over 18."""
    student, targets = normal(10, SAMPLES, PROTOTYPES), normal(2, SAMPLES, PROTOTYPES, seed=1).softmax(dim=-1)

    def pair(target: Tensor, view: Tensor) -> Tensor:
        return -(target * (view / TEMPERATURE).log_softmax(dim=-1)).sum(dim=-1).mean()

    local = sum(pair(target, view) for target in targets for view in student[2:]) / 18
    crossed = 2 / 18 * pair(targets.flip(0).flatten(0, 1), student[:2].flatten(0, 1))
    torch.testing.assert_close(cross_view_loss(student, targets, TEMPERATURE).of_all, local + crossed)


def test_cross_view_loss_is_that_of_lightly() -> None:
    lightly = pytest.importorskip("lightly.loss", reason="needs the optional extra with lightly")
    student, teacher = normal(10, SAMPLES, PROTOTYPES), normal(2, SAMPLES, PROTOTYPES, seed=1)
    theirs = lightly.DINOLoss(PROTOTYPES, student_temp=TEMPERATURE).double()
    expected = theirs(list(teacher), list(student), teacher_temp=0.05)
    found = cross_view_loss(student, (teacher / 0.05).softmax(dim=-1), TEMPERATURE).of_all
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_masked_patch_loss() -> None:
    masked, crops = [3, 0, 1, 5], 4
    student = normal(sum(masked), PROTOTYPES).requires_grad_()
    targets = normal(sum(masked), PROTOTYPES, seed=1).softmax(dim=-1)
    weights = torch.cat([torch.full((count,), 1 / count, dtype=torch.float64) for count in masked if count])
    loss = masked_patch_loss(student, targets, weights, crops, TEMPERATURE)
    pieces = zip(student.split(masked), targets.split(masked), strict=True)
    means = [F.cross_entropy(patches / TEMPERATURE, target) for patches, target in pieces if len(patches)]
    expected = torch.stack(means).sum() / crops
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    (found,), (exact,) = torch.autograd.grad(loss, student), torch.autograd.grad(expected, student)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)


def test_a_batch_without_masked_patch_gives_gradients_of_zero() -> None:
    head = torch.nn.Linear(5, PROTOTYPES)
    loss = masked_patch_loss(
        head(torch.empty(0, 5)), torch.empty(0, PROTOTYPES), torch.empty(0), crops=4, temperature=TEMPERATURE
    )
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(head.weight.grad, torch.zeros_like(head.weight))


def all_patches() -> tuple[Tensor, Tensor, Tensor]:
    """Shared weights, inputs and targets of masked patches of 4 crops, 3 patches in each of the first three."""
    return normal(6, PROTOTYPES), normal(9, 6, seed=1), normal(9, PROTOTYPES, seed=2).softmax(dim=-1)


def masked_patch_loss_on_rank(crops_of: tuple[tuple[int, ...], ...]) -> tuple[float, Tensor]:
    weight, inputs, targets = all_patches()
    crops = crops_of[dist.get_rank()]
    rows = torch.tensor([3 * crop + patch for crop in crops if crop < 3 for patch in range(3)], dtype=torch.long)
    weight.requires_grad_()
    weights = torch.full((len(rows),), 1 / 3, dtype=torch.float64)
    loss = masked_patch_loss(inputs[rows] @ weight, targets[rows], weights, len(crops), TEMPERATURE)
    loss.backward()
    value = loss.detach().clone()
    for tensor in (value, weight.grad):
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return value.item(), weight.grad


# The last crop, 3, has no masked patch: a rank that holds it alone has none at all.
@pytest.mark.parametrize(
    ("pool", "crops_of"), [("two_ranks", ((0, 3), (1, 2))), ("four_ranks", ((0,), (1,), (2,), (3,)))]
)
def test_masked_patch_loss_across_ranks(
    pool: str, crops_of: tuple[tuple[int, ...], ...], request: pytest.FixtureRequest
) -> None:
    ranks: RankPool = request.getfixturevalue(pool)
    weight, inputs, targets = all_patches()
    weight.requires_grad_()
    expected = 3 / 4 * F.cross_entropy(inputs @ weight / TEMPERATURE, targets)
    expected.backward()
    for value, gradient in ranks.run(masked_patch_loss_on_rank, crops_of):
        assert value == pytest.approx(expected.item(), abs=1e-12)
        torch.testing.assert_close(gradient, weight.grad, rtol=0, atol=1e-12)


def test_losses_of_half_precision_logits_are_float32_also_in_autocast() -> None:
    """With gradients in the logits' precision, rounded once."""
    student = normal(10, SAMPLES, 1000).bfloat16().requires_grad_()
    targets = normal(2, SAMPLES, 1000, seed=1).softmax(dim=-1).float()
    weights = torch.full((SAMPLES,), 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        across = cross_view_loss(student, targets, TEMPERATURE).of_all
        patches = masked_patch_loss(student[0], targets[0], weights, SAMPLES, TEMPERATURE)
        spread = koleo_loss(student[0], cohort=4)
    exact = student.detach().double().requires_grad_()
    expected = [written_out(exact, targets.double()), F.cross_entropy(exact[0] / TEMPERATURE, targets[0].double())]
    for found, value in zip((across, patches, spread), [*expected, koleo_loss(exact[0], cohort=4)], strict=True):
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(value.item(), rel=2e-6)
        gradient = torch.autograd.grad(found, student)[0]
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient.double(), torch.autograd.grad(value, exact)[0], rtol=2**-8, atol=1e-9)


def koleo_written_out(features: Tensor, cohort: int) -> Tensor:
    terms = []
    for points in F.normalize(features, dim=1).split(cohort):
        for i, point in enumerate(points):
            distances = [(point - other).norm() for j, other in enumerate(points) if i != j]
            terms.append(-torch.log(torch.stack(distances).min()))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("cohort", [2, 4, 8])
def test_koleo(cohort: int) -> None:
    features = normal(SAMPLES, 3).requires_grad_()
    loss, expected = koleo_loss(features, cohort), koleo_written_out(features, cohort)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    (found,), (exact,) = torch.autograd.grad(loss, features), torch.autograd.grad(expected, features)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)


def test_koleo_is_that_of_lightly_where_the_cohort_is_the_batch() -> None:
    lightly = pytest.importorskip("lightly.loss", reason="needs the optional extra with lightly")
    features = normal(SAMPLES, 5)
    torch.testing.assert_close(koleo_loss(features, SAMPLES), lightly.KoLeoLoss()(features), rtol=0, atol=1e-6)
    assert (koleo_loss(features, 4) - lightly.KoLeoLoss()(features)).abs() > 0.01


def koleo_on_rank(cohort: int) -> tuple[float, Tensor]:
    features, count = normal(SAMPLES, 3), SAMPLES // dist.get_world_size()
    mine = features[dist.get_rank() * count :][:count].requires_grad_()
    loss = koleo_loss(mine, cohort)
    loss.backward()
    value = loss.detach().clone()
    dist.all_reduce(value)
    return value.item() / dist.get_world_size(), mine.grad / dist.get_world_size()


@pytest.mark.parametrize("pool", ["two_ranks", "four_ranks"])
def test_koleo_does_not_depend_on_the_number_of_ranks(pool: str, request: pytest.FixtureRequest) -> None:
    ranks: RankPool = request.getfixturevalue(pool)
    features = normal(SAMPLES, 3).requires_grad_()
    expected = koleo_written_out(features, 2)
    expected.backward()
    found = ranks.run(koleo_on_rank, 2)
    torch.testing.assert_close(torch.cat([grad for _, grad in found]), features.grad, rtol=0, atol=1e-6)
    assert [value for value, _ in found] == pytest.approx([expected.item()] * len(found), abs=1e-6)


def test_koleo_of_two_equal_samples_is_large_and_finite() -> None:
    features = torch.ones(2, 3, requires_grad=True)
    loss = koleo_loss(features, cohort=2)
    loss.backward()
    assert 15 < loss.item() < 20
    assert features.grad.isfinite().all()


def test_koleo_of_lone_samples() -> None:
    with pytest.raises(ConfigError, match=r"objective.cohort: 1. .*koleo_weight"):
        koleo_loss(torch.ones(4, 3), cohort=1)


@pytest.fixture
def head() -> PrototypeHead:
    config = PrototypeHeadConfig(layers=3, hidden=20, bottleneck=6, prototypes=PROTOTYPES)
    with torch.device("meta"):
        module = PrototypeHead(config, width=10)
    initialise(module, InitialValues(module, seed=0), torch.device("cpu"))
    return module


def test_logits_of_the_head_are_cosines_with_the_prototypes(head: PrototypeHead) -> None:
    assert [tuple(p.shape) for p in head.mlp.parameters() if p.ndim == 2] == [(20, 10), (20, 20), (6, 20)]
    assert head.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert [name for name, _ in head.named_parameters(recurse=False)] == ["prototypes"]
    features = torch.randn(7, 10, generator=torch.Generator().manual_seed(0))
    logits = head(features)
    expected = F.cosine_similarity(head.mlp(features)[:, None], head.prototypes[None], dim=2)
    torch.testing.assert_close(logits, expected)
    with torch.no_grad():
        head.prototypes *= torch.arange(1.0, PROTOTYPES + 1)[:, None]
    again = head(features)
    torch.testing.assert_close(again, logits, msg="lengths of prototypes count for nothing")
    again[:, 0].sum().backward()
    gradient = head.prototypes.grad
    assert gradient[0].abs().sum() > 0
    torch.testing.assert_close(gradient[0] @ head.prototypes[0], torch.tensor(0.0), msg="nor do they change")
    assert not gradient[1:].any()


def test_the_head_in_half_precision(head: PrototypeHead) -> None:
    features = torch.randn(7, 10, generator=torch.Generator().manual_seed(0))
    exact = head(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert (head(features) - exact).abs().max() < 0.03
    assert (head.bfloat16()(features.bfloat16()) - exact).abs().max() < 0.05
    # No direction, but no division by zero either.
    with torch.no_grad():
        for parameter in head.mlp.parameters():
            parameter.zero_()
    assert torch.equal(head(features.bfloat16()), torch.zeros(7, PROTOTYPES, dtype=torch.bfloat16))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_head_of_fewer_layers(layers: int) -> None:
    head = PrototypeHead(PrototypeHeadConfig(layers=layers, hidden=20, bottleneck=6, prototypes=4), width=10)
    initialise(head, InitialValues(head, seed=0))
    assert sum(isinstance(layer, torch.nn.Linear) for layer in head.mlp) == layers
    assert head(torch.zeros(2, 10)).shape == (2, 4)
