"""What only a CUDA device can show: pinned batches, NCCL, kernels that agree with the CPU's, states that move over."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from astroclip_dist.config import RunConfig, parse_config
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.data.ordering.order import Cursor, Order
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.streaming.stream import Batch, Stream
from astroclip_dist.objectives import Objective, build_objective
from astroclip_dist.parallel.contrastive import contrastive_loss
from astroclip_dist.parallel.engines import Engine, StepRates, build_engine
from astroclip_dist.parallel.process_group import Ranks, join, leave
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import Progress, resolve_checkpoint, restore, save
from astroclip_dist.train.weights import load_weights
from tests.random_survey import write_random_survey

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

CONFIG = """
run: unused
data: {data}
device: {device}
length: 10 steps
batch: {{global_size: 16, lanes: 4}}
optimizer: {{lr: 1e-3}}
engine: {engine}
objective: {objective}
"""
IMAGE = "{width: 64, depth: 2, heads: 4, crop: 18, patch: 6, layer_scale: 0.1}"
SPECTRUM = "{width: 64, depth: 2, heads: 4}"
OBJECTIVES = {
    "clip": f"{{image: {IMAGE}, spectrum: {SPECTRUM}, head: {{embedding: 32, dropout: 0.1}}}}",
    "dinov2": f"{{name: dinov2, image: {IMAGE}, global_views: {{count: 2, size: 18}}, drop_path: 0.25, "
    "local_views: {count: 4, size: 12}, head: {layers: 2, hidden: 64, bottleneck: 32, prototypes: 128}}",
    "masked_spectrum": f"{{name: masked_spectrum, spectrum: {SPECTRUM}, masks: 2, mask_width: 3}}",
}
ENGINES = {
    "ddp": "{name: ddp}",
    "fsdp": "{name: fsdp}",
    "zero2": "{name: deepspeed, zero_stage: 2}",
    "zero3": "{name: deepspeed, zero_stage: 3}",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("random-survey")
    write_random_survey(str(folder), 100)
    return folder.as_uri()


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    """A group of this process alone, NCCL beside gloo."""
    ranks = join("cuda", 60.0)
    yield ranks
    leave(ranks)


def read_batch(data: str) -> Batch:
    dataset = Dataset.open([data], ["train"])
    order = Order(dataset.shard_samples, seed=0, lanes=4, global_batch=16, window_shards=1)
    with Stream(dataset, order, ["image", "spectrum"], rank=0, world_size=1, cursor=Cursor()) as stream:
        return next(stream)


def configure(data: str, engine: str, options: str, objective: str = "clip", device: str = "cuda") -> RunConfig:
    described = ENGINES[engine].replace("}", f", {options}}}")
    text = CONFIG.format(data=data, device=device, engine=described, objective=OBJECTIVES[objective])
    return parse_config(text, "test")


def objective_of(config: RunConfig, data: str, device: torch.device) -> Objective:
    return build_objective(config, Dataset.open([data], ["train"]), RunSteps(10, 6, 16), device)


def train(
    data: str, ranks: Ranks, engine: str, options: str, objective: str = "clip", steps: int = 4
) -> tuple[Engine, list[float]]:
    """The engine and its losses after some steps on one batch."""
    config = configure(data, engine, options, objective, ranks.device.type)
    built = objective_of(config, data, ranks.device)
    laid_out = build_engine(config, ranks, built.build())
    laid_out.train()
    batch, losses = read_batch(data), []
    for step in range(steps):
        losses.append(torch.as_tensor(built.accumulate(laid_out, built.prepare(batch), step)["loss"]).item())
        laid_out.step(StepRates(1e-3, 0.05, built.frozen(step)))
        built.after_step(laid_out, step)
    return laid_out, losses


def tensors_of(inputs: Any) -> list[torch.Tensor]:
    """All tensors of an objective's prepared inputs."""
    if isinstance(inputs, torch.Tensor):
        return [inputs]
    if isinstance(inputs, list):
        return [tensor for part in inputs for tensor in tensors_of(part)]
    parts = [getattr(inputs, field.name) for field in fields(inputs)]
    return [tensor for part in parts if isinstance(part, torch.Tensor | list) for tensor in tensors_of(part)]


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_batches_are_pinned_and_their_transfer_does_not_wait(data: str, ranks: Ranks, objective: str) -> None:
    batch = read_batch(data)
    assert all(tensor.is_pinned() for tensor in batch.members.values())
    built = objective_of(configure(data, "ddp", "precision: fp32", objective), data, ranks.device)
    expected = [part.cpu() for part in tensors_of(built.prepare(batch))]
    # The device is kept busy for some 0.1 s or more: preparing must return long before it has caught up.
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)
    busy = torch.cuda.Event()
    busy.record()
    prepared = tensors_of(built.prepare(batch))
    assert not busy.query(), "preparing a batch waited for the device"
    assert len(prepared) == len(expected) > 0
    for part, right in zip(prepared, expected, strict=True):
        assert part.device.type == "cuda"
        assert torch.equal(part.cpu(), right)


@pytest.mark.parametrize(("objective", "engine"), list(itertools.product(OBJECTIVES, ENGINES)))
def test_bfloat16_steps_on_nccl(data: str, ranks: Ranks, objective: str, engine: str) -> None:
    single = train(data, ranks, "ddp", "precision: fp32", objective)[1]
    half = train(data, ranks, engine, "precision: bf16", objective)[1]
    assert half == pytest.approx(single, rel=0.05)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_first_losses_are_those_of_the_cpu(data: str, ranks: Ranks, objective: str) -> None:
    there = train(data, ranks, "ddp", "precision: fp32", objective, steps=1)[1]
    here = Ranks(0, 1, 0, torch.device("cpu"), made_group=False)
    assert there == pytest.approx(train(data, here, "ddp", "precision: fp32", objective, steps=1)[1], rel=2e-3)


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "zero2", "zero3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_teacher_follows_as_whole_weights_would(data: str, ranks: Ranks, engine: str, precision: str) -> None:
    laid_out, _ = train(data, ranks, engine, f"precision: {precision}", "dinov2", steps=1)
    before = whole_state(laid_out)
    module: Any = laid_out.module
    laid_out.average(module.teacher, module.student, 0.9)
    after = whole_state(laid_out)
    names = [name for name in after if name.startswith("model.teacher.")]
    assert len(names) > 20
    for name in names:
        student = before[name.replace("model.teacher.", "model.student.")]
        if precision == "bf16" and engine == "zero2":
            student = student.bfloat16().float()
        assert torch.allclose(after[name], torch.lerp(before[name], student, 0.1), rtol=1e-5, atol=1e-7), name


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_changes_memory_alone(data: str, ranks: Ranks, engine: str, recompute: str) -> None:
    def peak_and_losses(recompute: str) -> tuple[int, list[float]]:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        laid_out, losses = train(data, ranks, engine, f"precision: bf16, recompute: {recompute}", "masked_spectrum")
        del laid_out
        return torch.cuda.max_memory_allocated(), losses

    most, expected = peak_and_losses("none")
    less, found = peak_and_losses(recompute)
    assert found == pytest.approx(expected, rel=1e-3)
    assert less < most


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_compiled_blocks_train_the_same(data: str, ranks: Ranks, engine: str, objective: str) -> None:
    from torch._dynamo.utils import counters

    expected = train(data, ranks, engine, "precision: bf16", objective)[1]
    torch._dynamo.reset()
    counters.clear()
    found = train(data, ranks, engine, "precision: bf16, compile: true", objective)[1]
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]
    assert found == pytest.approx(expected, rel=0.03)


def test_contrastive_loss_and_gradients_are_those_of_the_cpu(ranks: Ranks) -> None:
    torch.manual_seed(0)
    results = []
    embeddings = [torch.nn.functional.normalize(torch.randn(300, 64), dim=1) for _ in range(2)]
    for device in ("cpu", "cuda"):
        images, spectra = (embedding.to(device).requires_grad_() for embedding in embeddings)
        scale = torch.tensor([15.5], device=device, requires_grad=True)
        loss = contrastive_loss(images, spectra, scale)
        results.append([loss.cpu(), *(grad.cpu() for grad in torch.autograd.grad(loss, (images, spectra, scale)))])
    for left, right in zip(*results, strict=True):
        assert torch.allclose(left, right, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "zero2", "zero3"])
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_a_checkpoint_from_cuda_loads_on_the_cpu_and_back(
    data: str, ranks: Ranks, engine: str, objective: str, tmp_path: Path
) -> None:
    trained, _ = train(data, ranks, engine, "precision: bf16", objective)
    save(Store(tmp_path), trained, Progress(4), keep_last=1)
    plain = objective_of(configure(data, engine, "precision: bf16", objective), data, torch.device("cpu")).build()
    load_weights(plain, resolve_checkpoint(str(tmp_path))[1])
    state = whole_state(trained)
    assert all(torch.equal(value, state[f"model.{name}"]) for name, value in plain.state_dict().items())
    fresh, _ = train(data, ranks, engine, "precision: bf16", objective, steps=0)
    assert restore(Store(tmp_path), fresh) == Progress(4)
    assert all(torch.equal(value, state[name]) for name, value in whole_state(fresh).items())


def whole_state(engine: Engine) -> dict[str, torch.Tensor]:
    """A copy of the whole state on the CPU."""
    return {
        name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().cpu().clone()
        for name, tensor in engine.state().items()
    }
