"""Engines by name: how parameters are laid over ranks."""

from __future__ import annotations

from torch import nn

from astroclip_dist.config.engine import DdpEngine, DeepSpeedEngine, FsdpEngine
from astroclip_dist.config.run import RunConfig
from astroclip_dist.parallel.engines.base import Engine
from astroclip_dist.parallel.process_group import Ranks


def build_engine(config: RunConfig, ranks: Ranks, module: nn.Module) -> Engine:
    """Lay a module over ranks as the run's configuration says."""
    engine, optimizer = config.engine, config.optimizer
    # Imported when chosen: deepspeed alone costs seconds, and needs not be there for the others.
    if isinstance(engine, DdpEngine):
        from astroclip_dist.parallel.engines.ddp import Ddp

        return Ddp(engine, ranks, module, optimizer)
    if isinstance(engine, FsdpEngine):
        from astroclip_dist.parallel.engines.fsdp import Fsdp

        return Fsdp(engine, ranks, module, optimizer)
    assert isinstance(engine, DeepSpeedEngine)
    from astroclip_dist.parallel.engines.deepspeed import DeepSpeedZero

    micro_batches = config.local_batch // config.micro_batch
    return DeepSpeedZero(engine, ranks, module, optimizer, micro_batches, config.micro_batch)


__all__ = ["Engine", "build_engine"]
