"""How parameters are laid over ranks. One class an engine, told apart by ``name``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from astroclip_dist.config.strict import Section

Precision = Literal["fp32", "bf16"]


class DdpEngine(Section):
    """Every rank holds all parameters; gradients are averaged."""

    name: Literal["ddp"] = "ddp"
    precision: Precision = "fp32"


class FsdpEngine(Section):
    """Parameters, gradients and optimizer state sharded over ranks, block by block (FSDP2)."""

    name: Literal["fsdp"] = "fsdp"
    precision: Precision = "fp32"


class DeepSpeedEngine(Section):
    """DeepSpeed ZeRO: 1 shards the optimizer state, 2 the gradients too, 3 the parameters too."""

    name: Literal["deepspeed"] = "deepspeed"
    zero_stage: Literal[1, 2, 3] = 2
    precision: Precision = "fp32"


Engine = Annotated[DdpEngine | FsdpEngine | DeepSpeedEngine, Field(discriminator="name")]
