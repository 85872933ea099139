"""Which parameters share a learning rate and decay: by depth in their encoder, by kind, and by what may be frozen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from astroclip_dist.config.run import Optimizer

# Embedding-like parameters that are no matrices: decaying them pulls the input towards nothing.
_NO_DECAY = ("position", "class_token", "register_tokens", "mask_token", "query", "log_logit_scale")


@dataclass(frozen=True)
class StepRates:
    """What one optimizer step is done with.

    Attributes:
        frozen: last parts of the names of parameters that the step leaves as they are.
    """

    lr: float
    weight_decay: float
    frozen: tuple[str, ...] = ()


def parameter_groups(module: nn.Module, config: Optimizer) -> list[dict[str, Any]]:
    """The trained parameters as torch's parameter groups. Matrices decay; biases, norms and embedding-like vectors do
    not. ``lr_factor``, ``decays`` and ``kind`` say what :func:`set_rates` makes of the rates of a step."""
    depths = _depths(module)
    groups: dict[tuple[float, bool, str], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            kind = name.rpartition(".")[2]
            decays = parameter.ndim >= 2 and kind not in _NO_DECAY
            # Only the prototypes are ever frozen for a time: one group for all other kinds.
            kind = kind if kind == "prototypes" else ""
            groups[_lr_factor(name, depths, config), decays, kind].append(parameter)
    return [
        {"params": parameters, "lr_factor": factor, "decays": decays, "kind": kind}
        for (factor, decays, kind), parameters in groups.items()
    ]


def set_rates(groups: Iterable[dict[str, Any]], rates: StepRates) -> None:
    """Set the learning rate and weight decay of a step. AdamW at rate 0 changes no parameter, decay included."""
    for group in groups:
        group["lr"] = 0.0 if group["kind"] in rates.frozen else rates.lr * group["lr_factor"]
        group["weight_decay"] = rates.weight_decay if group["decays"] else 0.0


def _depths(module: nn.Module) -> dict[str, int]:
    """Number of blocks of each encoder, by its name in the module, with a dot at the end."""
    return {
        f"{name}." if name else "": len(part.blocks)
        for name, part in module.named_modules()
        if isinstance(getattr(part, "blocks", None), nn.ModuleList)
    }


def _lr_factor(name: str, depths: dict[str, int], config: Optimizer) -> float:
    """Of a parameter: ``layer_decay`` for each layer above its own in the encoder. The embedding is the lowest layer,
    the last norm the highest."""
    for prefix, depth in depths.items():
        if name.startswith(prefix):
            first, _, rest = name.removeprefix(prefix).partition(".")
            layer = int(rest.partition(".")[0]) + 1 if first == "blocks" else depth + 1 if first == "norm" else 0
            factor = config.layer_decay ** (depth + 1 - layer)
            return factor * (config.embedding_lr if first == "embed" else 1.0)
    return 1.0
