"""What only a CUDA device can show: pinned batches, NCCL, kernels that agree with the CPU's, states that move over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from astroclip_dist.config import RunConfig, parse_config
from astroclip_dist.data.dataset import Dataset
from astroclip_dist.data.order import Cursor, Order
from astroclip_dist.data.stream import Batch, Stream
from astroclip_dist.objectives import build_objective
from astroclip_dist.parallel.contrastive import contrastive_loss
from astroclip_dist.parallel.engines import Engine, build_engine
from astroclip_dist.parallel.process_group import Ranks, join, leave
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import Progress, load_weights, resolve_checkpoint, restore, save
from tests.random_survey import write_random_survey

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

CONFIG = """
run: unused
data: {data}
device: cuda
length: 10 steps
batch: {{global_size: 16, lanes: 4}}
optimizer: {{lr: 1e-3}}
engine: {{name: {engine}, precision: {precision}}}
objective:
  image: {{width: 64, depth: 2, heads: 4, crop: 18, patch: 6}}
  spectrum: {{width: 64, depth: 2, heads: 4}}
  head: {{embedding: 32, dropout: 0}}
"""


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


def configure(data: str, engine: str, precision: str) -> RunConfig:
    return parse_config(CONFIG.format(data=data, engine=engine, precision=precision), "test")


def train(data: str, ranks: Ranks, engine: str, precision: str, steps: int = 4) -> tuple[Engine, list[float]]:
    """The engine and its losses after some steps on one batch."""
    config = configure(data, engine, precision)
    objective = build_objective(config, Dataset.open([data], ["train"]), ranks.device)
    torch.manual_seed(0)
    laid_out = build_engine(config, ranks, objective.build())
    laid_out.train()
    batch, losses = read_batch(data), []
    for step in range(steps):
        losses.append(objective.accumulate(laid_out, objective.prepare(batch), step)["loss"].item())
        laid_out.step(1e-3)
    return laid_out, losses


def test_batches_are_pinned_and_their_transfer_does_not_wait(data: str, ranks: Ranks) -> None:
    batch = read_batch(data)
    assert all(tensor.is_pinned() for tensor in batch.members.values())
    objective = build_objective(configure(data, "ddp", "fp32"), Dataset.open([data], ["train"]), ranks.device)
    expected = [part.cpu() for part in objective.prepare(batch)]
    # The device is kept busy for some 0.1 s or more: preparing must return long before it has caught up.
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)
    busy = torch.cuda.Event()
    busy.record()
    prepared = objective.prepare(batch)
    assert not busy.query(), "preparing a batch waited for the device"
    assert all(part.device.type == "cuda" for part in prepared)
    assert all(torch.equal(part.cpu(), right) for part, right in zip(prepared, expected, strict=True))


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_bfloat16_steps_on_nccl(data: str, ranks: Ranks, engine: str) -> None:
    single = train(data, ranks, engine, "fp32")[1]
    half = train(data, ranks, engine, "bf16")[1]
    assert half == pytest.approx(single, rel=0.03)
    assert half[-1] < half[0]


def test_contrastive_loss_and_gradients_are_those_of_the_cpu() -> None:
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


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_checkpoint_from_cuda_loads_on_the_cpu_and_back(data: str, ranks: Ranks, engine: str, tmp_path: Path) -> None:
    trained, _ = train(data, ranks, engine, "bf16")
    save(Store(tmp_path), trained, Progress(4), keep_last=1)
    objective = build_objective(configure(data, engine, "bf16"), Dataset.open([data], ["train"]), torch.device("cpu"))
    plain = objective.build()
    load_weights(resolve_checkpoint(str(tmp_path))[1], plain)
    state = {name: full(value).cpu() for name, value in trained.state().items()}
    assert all(torch.equal(value, state[f"model.{name}"]) for name, value in plain.state_dict().items())
    fresh, _ = train(data, ranks, engine, "bf16", steps=0)
    assert restore(Store(tmp_path), fresh) == Progress(4)
    assert all(torch.equal(full(value).cpu(), state[name]) for name, value in fresh.state().items())


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
