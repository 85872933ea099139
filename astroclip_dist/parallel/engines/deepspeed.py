"""DeepSpeed ZeRO stages 1, 2 and 3.

Its own checkpoints are pickles that load at one world size only, so the state is taken and given parameter by parameter
through its ``safe_*`` functions, in the same form as every other engine's.

In bf16 DeepSpeed keeps fp32 weights of trained parameters alone; those of frozen ones (an EMA teacher, a frozen
backbone) are kept here, so that a teacher moves by less than bf16 resolves, and a state holds exact values.
"""

from __future__ import annotations

import os
from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from astroclip_dist.config.engine import DeepSpeedEngine
from astroclip_dist.config.run import Optimizer
from astroclip_dist.models.initial import InitialValues, initialise
from astroclip_dist.parallel.engines.base import MOMENTS, Engine, adamw
from astroclip_dist.parallel.engines.parameter_groups import StepRates, parameter_groups, set_rates
from astroclip_dist.parallel.process_group import Ranks

# A parameter with what ZeRO 3 adds to it: ds_tensor, ds_shape, ds_numel, ds_status, partition.
ZeroParameter = Any


class DeepSpeedZero(Engine):
    """ZeRO with torch's AdamW as its base optimizer."""

    def __init__(
        self,
        config: DeepSpeedEngine,
        ranks: Ranks,
        module: nn.Module,
        optimizer: Optimizer,
        values: InitialValues,
        micro_batches: int,
        micro_size: int,
    ) -> None:
        super().__init__(ranks, module)
        if ranks.device.type == "cpu":
            # Its shared-memory collectives would be compiled for minutes at the first start; gloo does without.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # The group is there already, with gloo beside NCCL: DeepSpeed is told which of them carries gradients.
        backend = "nccl" if ranks.device.type == "cuda" else "gloo"
        deepspeed.init_distributed(dist_backend=backend, dist_init_required=False)
        # It insists on this variable, which a process that was started alone does not have.
        os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))
        initialise(module, values, ranks.device)
        self._dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
        exact = {parameter: parameter.detach().clone() for parameter in frozen if self._dtype != torch.float32}
        self._zero, *_ = deepspeed.initialize(
            model=module,
            optimizer=adamw(parameter_groups(module, optimizer), optimizer),
            config={
                "train_micro_batch_size_per_gpu": micro_size,
                "gradient_accumulation_steps": micro_batches,
                "gradient_clipping": optimizer.clip_norm or 0.0,
                "bf16": {"enabled": config.precision == "bf16", "check_grad_overflow": True},
                "zero_optimization": {
                    "stage": config.zero_stage,
                    # Elements; the defaults allot gigabytes of buffers whatever the model's size.
                    "reduce_bucket_size": 5e7,
                    "allgather_bucket_size": 5e7,
                },
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 2**31,
            },
        )
        self._optimizer = self._zero.optimizer
        for flat in self._flat_parameters():
            self._optimizer.optimizer.state[flat] = {
                "step": torch.zeros((), device=flat.device),
                **{moment: torch.zeros_like(flat) for moment in MOMENTS},
            }
        if config.zero_stage < 3:
            # Otherwise its views of the moments exist only after the first step, too late to load into.
            self._optimizer._lazy_init_hp_params_optimizer_state()
        # This rank's fp32 values of frozen parameters; in fp32 those that the module computes with.
        self._frozen = {
            parameter: self._mine(parameter, exact[parameter]).clone() if exact else _held(parameter)
            for parameter in frozen
        }
        self._state: dict[str, Tensor] = {}

    def _forward(self, *inputs: Any) -> Any:
        return self._zero(*tree_map(self._cast, inputs))

    def _cast(self, value: Any) -> Any:
        return value.to(self._dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def _backward(self, loss: Tensor, *, last: bool) -> None:
        self._zero.set_gradient_accumulation_boundary(last)
        self._zero.backward(loss, scale_wrt_gas=False)

    def step(self, rates: StepRates) -> Tensor:
        set_rates(self._optimizer.param_groups, rates)
        self._zero.step()
        norm = torch.as_tensor(self._zero.get_global_grad_norm(), dtype=torch.float32).reshape(())
        return torch.full_like(norm, torch.nan) if self._optimizer.overflow else norm

    @torch.no_grad()
    def average(self, teacher: nn.Module, student: nn.Module, momentum: float) -> None:
        """As in the base class. In bf16, ZeRO 3 reads the student's fp32 weights; ZeRO 1 and 2, where a rank has fp32
        weights of its part alone, read the bf16 ones that all ranks have, whose rounding (2^-9 of a weight) is that
        of the teacher when it computes. The teacher itself is fp32 under all of them."""
        for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
            exact = self._frozen[ours]
            exact.lerp_(self._exact(theirs), 1 - momentum)
            self._show(ours, exact)

    def _exact(self, parameter: nn.Parameter) -> Tensor:
        """This rank's part of a parameter in the best precision that it has without communication."""
        if parameter in self._frozen:
            return self._frozen[parameter]
        if hasattr(parameter, "ds_tensor"):
            return safe_get_local_fp32_param(parameter)
        return parameter.detach().float()

    def _show(self, parameter: ZeroParameter, exact: Tensor) -> None:
        """Let the module compute with the values of a frozen parameter."""
        _held(parameter).copy_(exact)
        if hasattr(parameter, "ds_tensor") and parameter.ds_status is ZeroParamStatus.AVAILABLE:
            # ZeRO 3 keeps small parameters gathered: they must be gathered anew.
            parameter.partition()

    def discard(self) -> None:
        self._zero.set_gradient_accumulation_boundary(True)
        self._optimizer.zero_grad()

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """As in the base class; whole tensors in the host's memory, on every rank: a partition of ZeRO is a stretch of
        flattened parameters, and no rectangular part of a tensor, which is all that distributed checkpoints know."""
        (step,) = {float(state["step"]) for state in self._optimizer.optimizer.state.values()}
        state: dict[str, Tensor] = {}
        for name, parameter in self.module.named_parameters():
            shape = _full_shape(parameter)
            if parameter in self._frozen:
                state[f"model.{name}"] = self._whole(parameter, self._frozen[parameter])
                continue
            state[f"model.{name}"] = safe_get_full_fp32_param(parameter).view(shape).cpu()
            for moment in MOMENTS:
                state[f"optimizer.{name}.{moment}"] = safe_get_full_optimizer_state(parameter, moment).view(shape).cpu()
            state[f"optimizer.{name}.step"] = torch.tensor(step)
        for name, buffer in self._buffers():
            kept = buffer.clone()
            state[f"model.{name}"] = kept.float() if kept.is_floating_point() else kept
        self._state = state
        return state

    @torch.no_grad()
    def loaded(self) -> None:
        state = self._state
        for name, parameter in self.module.named_parameters():
            value = state[f"model.{name}"].to(self.ranks.device)
            if parameter in self._frozen:
                exact = self._frozen[parameter]
                exact.copy_(self._mine(parameter, value))
                self._show(parameter, exact)
                continue
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(value)
            self._set(parameter, value, None)
            for moment in MOMENTS:
                self._set(parameter, state[f"optimizer.{name}.{moment}"].to(self.ranks.device), moment)
            step = state[f"optimizer.{name}.step"]
        for base in self._optimizer.optimizer.state.values():
            base["step"].copy_(step)
        for name, buffer in self._buffers():
            buffer.copy_(state[f"model.{name}"])
        self._state = {}

    def _buffers(self) -> list[tuple[str, Tensor]]:
        """Those that belong to a state."""
        kept = self.module.state_dict().keys()
        return [(name, buffer) for name, buffer in self.module.named_buffers() if name in kept]

    def _set(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        """Set the fp32 weights (moment None) or a moment of a parameter from its full value."""
        if hasattr(parameter, "ds_tensor"):
            # ZeRO 3 fails to set full values that do not divide by the ranks.
            mine = self._mine(parameter, value)
            if moment is None:
                safe_set_local_fp32_param(parameter, mine)
            else:
                safe_set_local_optimizer_state(parameter, mine, moment)
        elif moment is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, moment)

    def _mine(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """What this rank holds of a parameter, of its full value: all, or with ZeRO 3 one of equal stretches of the
        flattened and padded value."""
        if not hasattr(parameter, "ds_tensor"):
            return value
        size = parameter.ds_tensor.numel()
        padded = F.pad(value.flatten(), (0, size * self.ranks.world_size - value.numel()))
        return padded[self.ranks.rank * size : (self.ranks.rank + 1) * size]

    def _whole(self, parameter: ZeroParameter, mine: Tensor) -> Tensor:
        """The full value, on the CPU, of what all ranks hold: the inverse of ``_mine``."""
        if not hasattr(parameter, "ds_tensor"):
            return mine.cpu().clone()
        padded = mine.new_empty(mine.numel() * self.ranks.world_size)
        dist.all_gather(list(padded.chunk(self.ranks.world_size)), mine)
        return padded[: parameter.ds_numel].view(parameter.ds_shape).cpu().clone()

    def _flat_parameters(self) -> list[Tensor]:
        """This rank's fp32 partitions. ZeRO 3 lends them to the base optimizer only while it steps."""
        if hasattr(self._optimizer, "fp32_partitioned_groups_flat"):
            return self._optimizer.fp32_partitioned_groups_flat
        return self._optimizer.single_partition_of_fp32_groups


def _held(parameter: nn.Parameter) -> Tensor:
    """What this rank's module computes with: all of a parameter, or with ZeRO 3 its stretch."""
    return getattr(parameter, "ds_tensor", parameter.detach())


def _full_shape(parameter: nn.Parameter) -> torch.Size:
    """ZeRO 3 leaves an empty placeholder where a parameter was, and its shape in ``ds_shape``."""
    return getattr(parameter, "ds_shape", parameter.shape)
