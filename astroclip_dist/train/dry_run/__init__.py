"""A dry run: what a configuration needs of each rank's memory, found on any machine in seconds to minutes."""

from __future__ import annotations

import json

import torch
from pydantic import TypeAdapter, ValidationError

from astroclip_dist.config import RunConfig
from astroclip_dist.config.engine import DeepSpeedEngine
from astroclip_dist.config.units import Bytes
from astroclip_dist.errors import ConfigError
from astroclip_dist.train.dry_run.allocations import ACTIVATIONS
from astroclip_dist.train.dry_run.forecast import Forecast, forecast, layouts_of

_DEFAULT_DEVICE = 80_000_000_000
# Of the device, beyond which what a dry run cannot see is likely to be too much.
_COMFORTABLE = 0.9
NOT_COUNTED = (
    "not counted: fragmentation of the allocator, buffers of NCCL, workspaces of cuBLAS and cuDNN, the CUDA context, "
    "what augmentation holds before the forward pass, temporaries within one operation"
)


def dry_run(config: RunConfig, device_memory: str | None, as_json: bool) -> str:
    """What to print of the memory that a rank of the run needs.

    Args:
        device_memory: such as ``80 GB``; None: that of this machine's GPU, 80 GB if it has none.

    Raises:
        ConfigError: it does not fit; or what the training itself would refuse before its first step.
    """
    available, source = _available(device_memory)
    found = forecast(config, layouts_of(config))
    if found.total > available:
        raise _does_not_fit(config, found, available)
    return _json(config, found, available) if as_json else _table(config, found, available, source)


def _available(device_memory: str | None) -> tuple[int, str]:
    if device_memory is not None:
        try:
            return TypeAdapter(Bytes).validate_python(device_memory), "given"
        except ValidationError as error:
            raise ConfigError("--device-memory", device_memory, "Write a number and MB, GB or TB: '80 GB'.") from error
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name(0)
    return _DEFAULT_DEVICE, "assumed: no GPU here, and no --device-memory"


def _does_not_fit(config: RunConfig, found: Forecast, available: int) -> ConfigError:
    mends = []
    if config.engine.recompute != "full":
        mends.append(f"engine.recompute (now {config.engine.recompute}): selective, or full")
    if config.micro_batch > 1:
        mends.append(f"batch.micro_size (now {config.micro_batch}): smaller")
    sharded = config.engine.name == "fsdp" or (
        isinstance(config.engine, DeepSpeedEngine) and config.engine.zero_stage == 3
    )
    states = found.total - found.kinds.get(ACTIVATIONS, 0)
    if not sharded and config.workers > 1:
        # What is too much first.
        mends.insert(0 if states > available / 2 else len(mends), f"engine.name (now {config.engine.name}): fsdp")
    if sharded:
        mends.append(f"workers (now {config.workers}): more")
    parts = ", ".join(f"{kind} {size / 1e9:.1f}" for kind, size in list(found.kinds.items())[:3])
    return ConfigError(
        "--device-memory",
        f"{available / 1e9:.1f} GB; a rank needs {found.total / 1e9:.1f} GB ({parts})",
        "Change, in this order: " + "; ".join(mends) + ".",
    )


def _table(config: RunConfig, found: Forecast, available: int, source: str) -> str:
    trained, kept = found.parameters
    per_rank = f"{config.local_batch} samples a rank in micro-batches of {config.micro_batch}"
    lines = [
        f"{config.objective.name} by {config.engine.name} on {config.workers} ranks, {config.engine.precision}, "
        f"recompute {config.engine.recompute}; {per_rank}",
        f"{trained:,} parameters trained, {kept:,} not",
        "",
        f"{'memory of a rank at the peak of a step':<52}GB",
        *(f"  {kind:<44}{size / 1e9:>10.3f}" for kind, size in found.kinds.items()),
        f"  {'total':<44}{found.total / 1e9:>10.3f}",
        f"  {'device':<44}{available / 1e9:>10.3f}  ({source})",
        "",
        *found.notes,
        NOT_COUNTED,
    ]
    share = found.total / available
    lines.append(
        f"fits: {share:.0%} of the device"
        + ("" if share <= _COMFORTABLE else ", which leaves little for what is not counted")
    )
    return "\n".join(lines)


def _json(config: RunConfig, found: Forecast, available: int) -> str:
    return json.dumps(
        {
            "objective": config.objective.name,
            "engine": config.engine.name,
            "workers": config.workers,
            "trained_parameters": found.parameters[0],
            "other_parameters": found.parameters[1],
            "bytes": found.kinds,
            "total_bytes": found.total,
            "device_bytes": available,
            "notes": [*found.notes, NOT_COUNTED],
        }
    )


__all__ = ["dry_run", "forecast", "layouts_of"]
