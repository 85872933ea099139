"""Initial values of a model's parameters and buffers, one tensor at a time, each from its own name.

Models are built on the meta device, without memory, and laid over ranks before they hold anything. A value is drawn
from (seed, name of the tensor): the same for every engine and world size, whatever part of the model a rank holds, and
never more than one whole tensor is in memory. A tensor for which nobody declares a value is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from astroclip_dist.data.draws import stream_key

Rule = Callable[[Sequence[int], torch.Generator], Tensor]
# Where a tensor's first value comes from instead of chance: None leaves it to chance.
Pretrained = Callable[[str, Sequence[int]], Tensor | None]
_LINEAR_STD = 0.02


@runtime_checkable
class DeclaresInitialValues(Protocol):
    """A module with parameters or buffers of its own, other than torch's linear layers and norms.

    A module may also have ``linear_std``, the standard deviation of the weights of all linear layers below it, and
    ``starts_as``, names of children that start with the values of others (a teacher with those of its student).
    """

    def initial_values(self) -> dict[str, Rule]:
        """The rule of each of the module's direct parameters and buffers."""


def truncated_normal(std: float) -> Rule:
    """Normal numbers, cut at two sigma."""

    def draw(shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return nn.init.trunc_normal_(torch.empty(shape), std=std, a=-2 * std, b=2 * std, generator=generator)

    return draw


def constant(value: float) -> Rule:
    """The same number everywhere."""
    return lambda shape, generator: torch.full(tuple(shape), value)


class InitialValues:
    """The first value of each tensor of a model, whole, float32, on the CPU."""

    def __init__(self, module: nn.Module, seed: int, pretrained: Pretrained | None = None) -> None:
        """The module may be on the meta device; it is only looked at."""
        self._seed, self._pretrained = seed, pretrained
        self._rules = {name: (source, rule) for name, source, rule in _rules(module, "", "", _LINEAR_STD)}
        shapes = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        self._shapes = {name: tuple(tensor.shape) for name, tensor in shapes}

    def __call__(self, name: str) -> Tensor:
        """The value of the parameter or buffer of this name."""
        source, rule = self._rules[name]
        if self._pretrained is not None and (value := self._pretrained(name, self._shapes[name])) is not None:
            return value
        generator = torch.Generator().manual_seed(stream_key(f"initial {source}", self._seed) % 2**63)
        return rule(self._shapes[name], generator)


@torch.no_grad()
def initialise(module: nn.Module, values: InitialValues, device: torch.device | None = None) -> None:
    """Give a model that is not laid over ranks its memory and its first values."""
    if device is not None:
        module.to_empty(device=device)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        # What is forgotten must show: uninitialised memory is often zeros, and those train.
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)
        tensor.copy_(values(name))


def _rules(module: nn.Module, prefix: str, source: str, std: float) -> Iterator[tuple[str, str, Rule]]:
    """(name, name that keys the draw, rule) of all parameters and buffers at and below a module."""
    std = getattr(module, "linear_std", std)
    declared = _declared(module, std)
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for name, _ in own:
        if name not in declared:
            raise TypeError(f"{prefix}{name}: {type(module).__name__} declares no initial value for it")
        yield prefix + name, source + name, declared[name]
    starts_as: dict[str, str] = getattr(module, "starts_as", {})
    for name, child in module.named_children():
        yield from _rules(child, f"{prefix}{name}.", f"{source}{starts_as.get(name, name)}.", std)


def _declared(module: nn.Module, std: float) -> dict[str, Rule]:
    declared = module.initial_values() if isinstance(module, DeclaresInitialValues) else {}
    if isinstance(module, nn.Linear):
        return {"weight": truncated_normal(std), "bias": constant(0.0), **declared}
    if isinstance(module, nn.LayerNorm):
        return {"weight": constant(1.0), "bias": constant(0.0)}
    return declared
