"""How parameters are laid over ranks. One class an engine, told apart by ``name``. None of it changes what is computed,
but for rounding."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from astroclip_dist.config.strict import Section
from astroclip_dist.errors import ConfigError

Precision = Literal["fp32", "bf16"]


class _EngineOptions(Section):
    precision: Precision = "fp32"
    recompute: Literal["none", "selective", "full"] = Field(
        default="none", description="activations computed again in backward: none, all but matrix products, all"
    )
    compile: bool = Field(default=False, description="torch.compile of each transformer block")

    @model_validator(mode="after")
    def _one_chooses_what_is_kept(self) -> Self:
        if self.compile and self.recompute == "selective":
            raise ConfigError(
                "recompute",
                self.recompute,
                "With compile: true it is the compiler that keeps matrix products and computes cheap operations again: "
                "write none; or full, which keeps nothing but each block's input.",
            )
        return self


class DdpEngine(_EngineOptions):
    """Every rank holds all parameters; gradients are averaged."""

    name: Literal["ddp"] = "ddp"


class FsdpEngine(_EngineOptions):
    """Parameters, gradients and optimizer state sharded over ranks, block by block (FSDP2)."""

    name: Literal["fsdp"] = "fsdp"
    reshard_after_forward: bool = Field(
        default=True, description="free a block's parameters until backward; off: more memory, one gather less"
    )
    prefetch: int = Field(
        default=1, ge=0, description="blocks gathered ahead of the one that computes; 0: what FSDP2 does unasked"
    )


class DeepSpeedEngine(_EngineOptions):
    """DeepSpeed ZeRO: 1 shards the optimizer state, 2 the gradients too, 3 the parameters too."""

    name: Literal["deepspeed"] = "deepspeed"
    zero_stage: Literal[1, 2, 3] = 2


Engine = Annotated[DdpEngine | FsdpEngine | DeepSpeedEngine, Field(discriminator="name")]
