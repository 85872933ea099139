"""DeepSpeed ZeRO stages 1, 2 and 3.

Its own checkpoints are pickles that load at one world size only, so the state is taken and given parameter by parameter
through its ``safe_*`` functions, in the same form as every other engine's.
"""

from __future__ import annotations

from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.nn.functional as F
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
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
        initialise(module, values, ranks.device)
        self._dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self._zero, *_ = deepspeed.initialize(
            model=module,
            optimizer=adamw(parameter_groups(module, optimizer), optimizer, ranks.device),
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
                "step": torch.zeros((), device=flat.device if ranks.device.type == "cuda" else "cpu"),
                **{moment: torch.zeros_like(flat) for moment in MOMENTS},
            }
        if config.zero_stage < 3:
            # Otherwise its views of the moments exist only after the first step, too late to load into.
            self._optimizer._lazy_init_hp_params_optimizer_state()
        self._state: dict[str, Tensor] = {}

    def forward(self, *inputs: Any) -> Any:
        return self._zero(*tree_map(self._cast, inputs))

    def _cast(self, value: Any) -> Any:
        return value.to(self._dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._zero.set_gradient_accumulation_boundary(last)
        self._zero.backward(loss, scale_wrt_gas=False)

    def step(self, rates: StepRates) -> Tensor:
        set_rates(self._optimizer.param_groups, rates)
        self._zero.step()
        norm = torch.as_tensor(self._zero.get_global_grad_norm(), dtype=torch.float32).reshape(())
        return torch.full_like(norm, torch.nan) if self._optimizer.overflow else norm

    @torch.no_grad()
    def average(self, teacher: nn.Module, student: nn.Module, momentum: float) -> None:
        raise NotImplementedError  # TODO

    def discard(self) -> None:
        self._zero.set_gradient_accumulation_boundary(True)
        self._optimizer.zero_grad()

    def state(self) -> dict[str, Tensor]:
        names = dict(self.module.named_parameters())
        trained = {name for name, parameter in names.items() if parameter.requires_grad}
        steps = {float(state["step"]) for state in self._optimizer.optimizer.state.values()}
        state: dict[str, Tensor] = {}
        for name, parameter in names.items():
            if name in trained:
                state[f"model.{name}"] = safe_get_full_fp32_param(parameter).view(_full_shape(parameter))
                for moment in MOMENTS:
                    full = safe_get_full_optimizer_state(parameter, moment)
                    state[f"optimizer.{name}.{moment}"] = full.view(_full_shape(parameter))
                state[f"optimizer.{name}.step"] = torch.tensor(max(steps))
            else:
                with deepspeed.zero.GatheredParameters([parameter]):
                    state[f"model.{name}"] = parameter.detach().float().clone()
        self._state = state
        return state

    def loaded(self) -> None:
        state = self._state
        for name, parameter in self.module.named_parameters():
            value = state[f"model.{name}"]
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(value.to(parameter.dtype).view(parameter.shape))
            if parameter.requires_grad:
                self._set(parameter, value, None)
                for moment in MOMENTS:
                    self._set(parameter, state[f"optimizer.{name}.{moment}"], moment)
                step = state[f"optimizer.{name}.step"]
        for base in self._optimizer.optimizer.state.values():
            base["step"].copy_(step)
        self._state = {}

    def _set(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        """Set the fp32 weights (moment None) or a moment of a parameter from its full value."""
        if hasattr(parameter, "ds_tensor"):
            # ZeRO 3 fails to set full values that do not divide by the ranks; it pads its partitions, and so do we.
            size = parameter.ds_tensor.numel()
            padded = F.pad(value.flatten(), (0, size * self.ranks.world_size - value.numel()))
            mine = padded[self.ranks.rank * size : (self.ranks.rank + 1) * size]
            if moment is None:
                safe_set_local_fp32_param(parameter, mine)
            else:
                safe_set_local_optimizer_state(parameter, mine, moment)
        elif moment is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, moment)

    def _flat_parameters(self) -> list[Tensor]:
        """This rank's fp32 partitions. ZeRO 3 lends them to the base optimizer only while it steps."""
        if hasattr(self._optimizer, "fp32_partitioned_groups_flat"):
            return self._optimizer.fp32_partitioned_groups_flat
        return self._optimizer.single_partition_of_fp32_groups


def _full_shape(parameter: nn.Parameter) -> torch.Size:
    """ZeRO 3 leaves an empty placeholder where a parameter was, and its shape in ``ds_shape``."""
    return getattr(parameter, "ds_shape", parameter.shape)
