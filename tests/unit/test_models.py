"""The encoders and the two-tower model: published sizes, what positions and tokens do, freezing, precision."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from astroclip_dist.config.engine import DdpEngine, FsdpEngine
from astroclip_dist.config.model import CrossAttentionHead, ImageEncoder, SpectrumEncoder
from astroclip_dist.config.objective import ClipAlignment
from astroclip_dist.config.run import Optimizer
from astroclip_dist.data.preprocessing.spectra import slice_spectra
from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.models.attention_pool import AttentionPool
from astroclip_dist.models.image_encoder import ImageTransformer
from astroclip_dist.models.initial import InitialValues, initialise
from astroclip_dist.models.spectrum_encoder import SpectrumTransformer
from astroclip_dist.models.two_tower import TwoTower
from astroclip_dist.parallel.contrastive import contrastive_loss
from astroclip_dist.parallel.engines import Engine, StepRates
from astroclip_dist.parallel.engines.ddp import Ddp
from astroclip_dist.parallel.engines.fsdp import Fsdp
from astroclip_dist.parallel.process_group import Ranks
from tests.rank_pool import RankPool

IMAGE = ImageEncoder(width=32, depth=2, heads=4, crop=18, patch=6)
SPECTRUM = SpectrumEncoder(width=32, depth=2, heads=4)
HEAD = CrossAttentionHead(embedding=16, dropout=0)
SMALL = ClipAlignment(image=IMAGE, spectrum=SPECTRUM, head=HEAD)
BINS = 120


def small(**changes: object) -> TwoTower:
    model = TwoTower(SMALL.model_copy(update=changes), ImageLayout(size=24), SpectrumLayout(size=BINS))
    initialise(model, InitialValues(model, seed=0))
    return model


def inputs(samples: int = 4, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Images as after the stretch, and spectra as tokens."""
    generator = torch.Generator().manual_seed(seed)
    spectra = slice_spectra(torch.randn(samples, BINS, generator=generator).cumsum(1), 20, 10)
    return torch.rand(samples, 3, 18, 18, generator=generator), spectra


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_sizes() -> None:
    """AstroCLIP sections 3.1 to 3.3 and README: ViT-L/12 at 144 px, SpecFormer, 370 M parameters together."""
    with torch.device("meta"):
        model = TwoTower(ClipAlignment(), ImageLayout(), SpectrumLayout())
        images = model.image_encoder(torch.empty(2, 3, 144, 144))
        spectra = model.spectrum_encoder(slice_spectra(torch.empty(2, 7781), 20, 10))
        image, spectrum, scale = model(torch.empty(2, 3, 144, 144), slice_spectra(torch.empty(2, 7781), 20, 10))
    assert images.shape == (2, 145, 1024)
    assert spectra.shape == (2, 778, 768)
    assert image.shape == spectrum.shape == (2, 1024)
    assert scale.shape == (1,)
    assert parameters(model.image_encoder) == pytest.approx(302.9e6, rel=2e-3)
    # The published 43.18 M have 17 thousand of the reconstruction layer, and positions for 800 tokens.
    assert parameters(model.spectrum_encoder) == pytest.approx(43.18e6 - 22 * 769 - 22 * 768, rel=1e-3)
    assert parameters(model.image_head) == pytest.approx(12.6e6, rel=0.02)
    assert parameters(model.spectrum_head) == pytest.approx(12.07e6, rel=0.02)
    assert parameters(model) == pytest.approx(370e6, rel=5e-3)


def test_embeddings_are_unit_vectors_and_the_scale_is_the_configured_one() -> None:
    image, spectrum, scale = small()(*inputs())
    for embedding in (image, spectrum):
        assert embedding.dtype == torch.float32
        assert torch.allclose(embedding.norm(dim=1), torch.ones(4))
    assert scale.item() == pytest.approx(15.5)
    assert small()(inputs()[0], None)[1] is None
    assert small()(None, inputs()[1])[0] is None


def randomise(module: nn.Module) -> nn.Module:
    """Every parameter of order one: at initialisation a layer scale of 1e-5 hides what blocks do."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module.eval()


def patches_in_another_order(images: torch.Tensor) -> torch.Tensor:
    """The same patches of 6 px in reverse order."""
    patches = images.unfold(2, 6, 6).unfold(3, 6, 6).flip(2, 3)
    return patches.permute(0, 1, 2, 4, 3, 5).reshape(images.shape)


def embedded_by_image(module: nn.Module, images: torch.Tensor, head: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return head(module(images))


def test_the_place_of_a_patch_matters_through_the_position_embedding_alone() -> None:
    encoder, head = randomise(ImageTransformer(IMAGE, bands=3)), randomise(AttentionPool(HEAD, 32))
    images = inputs()[0]
    moved = patches_in_another_order(images)
    assert not torch.equal(images, moved)
    assert not torch.allclose(
        embedded_by_image(encoder, images, head), embedded_by_image(encoder, moved, head), atol=1e-2
    )
    with torch.no_grad():
        encoder.position.zero_()
    # Without positions both attention and pooling are blind to order.
    assert torch.allclose(embedded_by_image(encoder, images, head), embedded_by_image(encoder, moved, head), atol=1e-4)


def test_the_class_token_reaches_the_embedding() -> None:
    encoder, head = randomise(ImageTransformer(IMAGE, bands=3)), randomise(AttentionPool(HEAD, 32))
    images = inputs()[0]
    before = embedded_by_image(encoder, images, head)
    with torch.no_grad():
        encoder.class_token.normal_()
    assert not torch.allclose(before, embedded_by_image(encoder, images, head), atol=1e-3)


def test_the_place_of_a_slice_matters() -> None:
    encoder, head = randomise(SpectrumTransformer(SPECTRUM, BINS)), randomise(AttentionPool(HEAD, 32))
    tokens = inputs()[1]
    moved = torch.cat([tokens[:, :1], tokens[:, 1:].flip(1)], dim=1)
    assert not torch.allclose(
        embedded_by_image(encoder, tokens, head), embedded_by_image(encoder, moved, head), atol=1e-2
    )


def test_patches_are_cut_as_a_strided_convolution_would() -> None:
    """The patch embedding of Dosovitskiy et al. (2021) is a convolution; ours is a linear layer over cut patches."""
    encoder = ImageTransformer(IMAGE, bands=3)
    initialise(encoder, InitialValues(encoder, seed=0))
    with torch.no_grad():
        encoder.position.zero_()
    encoder.blocks, encoder.norm = nn.ModuleList(), nn.Identity()
    images = inputs()[0]
    weight = encoder.embed.weight.view(32, 3, 6, 6)
    expected = nn.functional.conv2d(images, weight, encoder.embed.bias, stride=6).flatten(2).transpose(1, 2)
    assert torch.allclose(encoder(images)[:, 1:], expected, atol=1e-5)


def step(model: TwoTower) -> float:
    image, spectrum, scale = model(*inputs(8))
    loss = contrastive_loss(image, spectrum, scale)
    loss.backward()
    return loss.item()


def test_gradients_reach_every_trainable_parameter() -> None:
    model = small(learn_logit_scale=True)
    step(model)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # Adding the same vector to all keys of a softmax changes nothing: the key biases have no gradient.
        if not name.endswith(("qkv.bias", "project_tokens.bias")):
            assert parameter.grad.abs().max() > 0, name


def test_the_logit_scale_is_fixed_unless_asked_for() -> None:
    model = small()
    step(model)
    assert model.log_logit_scale.grad is None


def test_frozen_backbones_stay_and_heads_learn() -> None:
    model = small(freeze_backbones=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = []
    for _ in range(5):
        losses.append(step(model))
        optimizer.step()
        optimizer.zero_grad()
    for name, value in model.state_dict().items():
        frozen = name.split(".")[0] in ("image_encoder", "spectrum_encoder", "log_logit_scale")
        assert torch.equal(value, before[name]) == frozen, name
    assert losses[-1] < losses[0]


def few_losses(engine: str, precision: str, steps: int) -> list[float]:
    """Losses of a few steps of one rank of a group, on the same batch each time."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), dist.get_rank(), torch.device("cpu"), made_group=False)
    optimizer, model = Optimizer(lr=1e-3), small()
    values = InitialValues(model, seed=0)
    laid_out: Engine = (
        Ddp(DdpEngine(precision=precision), ranks, model, optimizer, values)
        if engine == "ddp"
        else Fsdp(FsdpEngine(precision=precision), ranks, model, optimizer, values)
    )
    laid_out.train()
    losses = []
    for _ in range(steps):
        image, spectrum, scale = laid_out.forward(*inputs(8, seed=ranks.rank))
        loss = contrastive_loss(image, spectrum, scale)
        laid_out.backward(loss, last=True)
        laid_out.step(StepRates(1e-4, 0.05))
        mean = loss.detach().clone()
        dist.all_reduce(mean, dist.ReduceOp.AVG)
        losses.append(mean.item())
    stored = {tensor.dtype for name, tensor in laid_out.state().items()}
    assert stored == {torch.float32}, "master weights and moments are kept in single precision"
    return losses


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_bfloat16_trains_close_to_single_precision(engine: str, two_ranks: RankPool) -> None:
    single = two_ranks.run(few_losses, engine, "fp32", 6)[0]
    half = two_ranks.run(few_losses, engine, "bf16", 6)[0]
    assert half != single, "bf16 had no effect"
    assert half == pytest.approx(single, rel=0.03)
    assert half[-1] < half[0]
