"""A student and its teacher, small and of sizes that no number of ranks divides, under any engine."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from astroclip_dist.config import RunConfig, parse_config
from astroclip_dist.config.model import ImageEncoder
from astroclip_dist.config.model import PrototypeHead as PrototypeHeadConfig
from astroclip_dist.models.image_encoder import ImageTransformer
from astroclip_dist.models.initial import Rule, constant
from astroclip_dist.models.prototype_head import PrototypeHead
from astroclip_dist.parallel.engines import Engine, build_engine
from astroclip_dist.parallel.process_group import Ranks

ENCODER = ImageEncoder(width=12, depth=3, heads=2, crop=12, patch=6, layer_scale=0.5)
HEAD = PrototypeHeadConfig(layers=2, hidden=8, bottleneck=5, prototypes=7)
ENGINES = {
    "ddp": "{name: ddp}",
    "fsdp": "{name: fsdp}",
    "fsdp, kept": "{name: fsdp, reshard_after_forward: false, prefetch: 2}",
    "zero1": "{name: deepspeed, zero_stage: 1}",
    "zero2": "{name: deepspeed, zero_stage: 2}",
    "zero3": "{name: deepspeed, zero_stage: 3}",
}
BATCH = 8


class Branch(nn.Module):
    """Encoder and head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ImageTransformer(ENCODER, bands=3)
        self.head = PrototypeHead(HEAD, ENCODER.width)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images)[:, 0])


class TinyPair(nn.Module):
    """(n, 3, 12, 12) to the student's cross-entropy with the teacher, and the teacher's logits."""

    starts_as: ClassVar = {"teacher": "student"}
    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = Branch(), Branch()
        self.teacher.requires_grad_(False)
        self.register_buffer("offset", torch.empty(3))

    def initial_values(self) -> dict[str, Rule]:
        return {"offset": constant(0.25)}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        images = images + self.offset.view(3, 1, 1).to(images.dtype)
        with torch.no_grad():
            wanted = self.teacher(images)
        found = self.student(images.flip(-1))
        # Targets so soft that the loss is of order one: near zero, bf16's rounding would be all of it.
        targets = (wanted.float() * 2).softmax(dim=-1)
        return -(targets * (found.float() * 10).log_softmax(dim=-1)).sum(dim=-1).mean(), wanted


def configure(engine: str, options: str = "", optimizer: str = "lr: 1e-3") -> RunConfig:
    """A configuration whose engine and optimizer count; ``options`` are further ones of the engine, after a comma."""
    workers = dist.get_world_size() if dist.is_initialized() else 1
    described = ENGINES[engine].replace("}", f"{options}}}")
    batch = f"{{global_size: {BATCH * workers}, lanes: 4}}"
    return parse_config(
        f"{{data: unused, run: unused, length: 10 steps, device: cpu, workers: {workers}, batch: {batch}, "
        f"engine: {described}, optimizer: {{{optimizer}}}}}",
        "test",
    )


def lay_out(config: RunConfig, device: str = "cpu") -> Engine:
    """A new pair on this rank of the group that there is."""
    rank = dist.get_rank()
    ranks = Ranks(rank, dist.get_world_size(), rank, torch.device(device), made_group=False)
    with torch.device("meta"):
        module = TinyPair()
    engine = build_engine(config, ranks, module)
    engine.train()
    return engine


def images(step: int) -> Tensor:
    """This rank's input of a step."""
    return torch.rand(BATCH, 3, 12, 12, generator=torch.Generator().manual_seed(100 * step + dist.get_rank()))


def whole_state(engine: Engine) -> dict[str, Tensor]:
    """A copy of the whole state on this rank, on the CPU."""
    return {
        name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).cpu().clone()
        for name, tensor in engine.state().items()
    }
