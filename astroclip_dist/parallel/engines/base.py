"""What every engine offers to the loop: a model to call, backward, a step that never applies bad gradients, a state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from astroclip_dist.config.run import Optimizer as OptimizerConfig
from astroclip_dist.parallel import phase
from astroclip_dist.parallel.engines.parameter_groups import StepRates, parameter_groups, set_rates
from astroclip_dist.parallel.process_group import Ranks

MOMENTS = ("exp_avg", "exp_avg_sq")


class Engine(ABC):
    """Lays one module over ranks, gives it its first values, and trains it with AdamW.

    States are flat mappings of names that do not depend on the engine (``model.NAME``, ``optimizer.NAME.exp_avg``,
    ``optimizer.NAME.step``) to tensors, so that any engine's checkpoint loads into any other.
    """

    def __init__(self, ranks: Ranks, module: nn.Module) -> None:
        self.ranks = ranks
        self.module = module

    def forward(self, *inputs: Tensor | None) -> Any:
        """The module's outputs, under the engine's precision."""
        phase.enter("forward")
        outputs = self._forward(*inputs)
        # What an objective makes of them may need the other ranks' (negatives, targets).
        phase.enter("loss")
        return outputs

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradients of one micro-batch; ``last`` ends the accumulation of a step."""
        phase.enter("backward")
        self._backward(loss, last=last)

    @abstractmethod
    def _forward(self, *inputs: Tensor | None) -> Any: ...

    @abstractmethod
    def _backward(self, loss: Tensor, *, last: bool) -> None: ...

    @abstractmethod
    def step(self, rates: StepRates) -> Tensor:
        """Clip and apply the gradients, unless their norm over all ranks is not finite.

        Clipped is the norm of all parameters together; the published DINOv2 training clips backbone and heads apart.

        Returns:
            That norm before clipping, 0-d, the same on all ranks. If it is not finite nothing was changed, and the
            gradients are forgotten.
        """

    @abstractmethod
    def average(self, teacher: nn.Module, student: nn.Module, momentum: float) -> None:
        """Move every parameter of ``teacher`` towards the student's: t <- momentum t + (1 - momentum) s, in fp32.

        Both are parts of the module, alike in structure and so laid over ranks alike: every rank does it for what it
        holds, and nothing is sent.
        """

    @abstractmethod
    def discard(self) -> None:
        """Forget the gradients of this step."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Parameters, buffers and optimizer state; tensors or DTensors that checkpointing reads from or writes into."""

    @abstractmethod
    def loaded(self) -> None:
        """To be called after a checkpoint was written into the tensors of :meth:`state`."""

    def train(self) -> None:
        self.module.train()


def adamw(groups: Iterable[Any], config: OptimizerConfig) -> torch.optim.AdamW:
    """The optimizer of a run, in one pass over each parameter: a fifth of the default's time on a CPU."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


class TorchEngine(Engine):
    """What ddp and fsdp share: a torch optimizer over the laid-out module's own parameters."""

    def __init__(self, ranks: Ranks, module: nn.Module, config: OptimizerConfig) -> None:
        super().__init__(ranks, module)
        self._clip_norm = config.clip_norm if config.clip_norm is not None else torch.inf
        self._optimizer = adamw(parameter_groups(module, config), config)
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                # Made now rather than at the first step: a state to load into must exist before any step.
                self._optimizer.state[parameter] = {
                    "step": torch.zeros((), device=ranks.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }

    def step(self, rates: StepRates) -> Tensor:
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._clip_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if torch.isfinite(norm):
            set_rates(self._optimizer.param_groups, rates)
            self._optimizer.step()
        self.discard()
        return norm

    @torch.no_grad()
    def average(self, teacher: nn.Module, student: nn.Module, momentum: float) -> None:
        pairs = zip(teacher.parameters(), student.parameters(), strict=True)
        mine = [(_local(ours), _local(theirs)) for ours, theirs in pairs]
        torch._foreach_lerp_([ours for ours, _ in mine], [theirs for _, theirs in mine], 1 - momentum)

    def discard(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        state = {f"model.{name}": value for name, value in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{name}.{key}"] = value
        return state

    def loaded(self) -> None:
        """Nothing to do: :meth:`state` gave the very tensors that are trained."""


def _local(tensor: Tensor) -> Tensor:
    """This rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
