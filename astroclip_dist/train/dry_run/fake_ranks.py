"""A process that believes to be one of many ranks, and computes shapes only.

All that a dry run needs of torch's unfinished pieces is used here: its fake process group and fake tensors. Tensors are
CPU tensors to torch, whatever device they stand for: autograd refuses CUDA tensors, fake or not, on a machine without
CUDA. ``as_on_cuda`` makes up for what differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes

from astroclip_dist.objectives.dinov2 import losses
from astroclip_dist.parallel import contrastive
from astroclip_dist.parallel.engines import fsdp
from astroclip_dist.parallel.process_group import Ranks

# What autocast computes in float32 on CUDA and not on a CPU, of what this package calls
# (https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast to float32").
_FLOAT32_ON_CUDA = {
    F.layer_norm,
    F.softmax,
    F.log_softmax,
    F.cross_entropy,
    torch.softmax,
    torch.log_softmax,
    Tensor.softmax,
    Tensor.log_softmax,
    torch.exp,
    Tensor.exp,
    torch.log,
    Tensor.log,
    torch.sum,
    Tensor.sum,
    torch.norm,
    Tensor.norm,
}


@contextmanager
def fake_ranks(world_size: int) -> Iterator[Ranks]:
    """The first of ``world_size`` ranks, in a process that has no group; tensors made within have no memory.

    Raises:
        RuntimeError: there is a process group.
    """
    if dist.is_initialized():
        raise RuntimeError("A process that is one of real ranks cannot be one of fake ranks.")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        with ExitStack() as stack:
            for name in ("init_device_mesh", "compute_local_shape_and_global_offset"):
                stack.enter_context(mock.patch.object(fsdp, name, _with_values(getattr(fsdp, name))))
            stack.enter_context(
                mock.patch.object(DistributedDataParallel, "__init__", _ddp_with_hook(DistributedDataParallel.__init__))
            )
            # What was made without the mode (keys, masks, tables) may meet what was made within.
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            yield Ranks(0, world_size, 0, torch.device("cpu"), True)
    finally:
        dist.destroy_process_group()


def _with_values(function: Any) -> Any:
    """A function that looks at the values of tensors of its own, such as numbers of ranks."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return function(*args, **kwargs)

    return call


def _ddp_with_hook(make: Any) -> Any:
    """DDP's own reduction asks for the result of the fake group's work, which has none."""

    def init(self: DistributedDataParallel, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        self.register_comm_hook(None, _reduced)
        self.reducer = _FirstBuckets(self.reducer)  # type: ignore[assignment]

    return init


class _FirstBuckets:
    """DDP's reducer, but it never sorts its buckets anew, for which the ranks would agree on values. Their bytes are
    the same in any order."""

    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def _rebuild_buckets(self) -> bool:
        return False


def _reduced(state, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations that are strings
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Where this package or autocast treat CUDA unlike a CPU, take CUDA's side."""
    with (
        mock.patch.object(contrastive, "CPU_TILE", contrastive.DEVICE_TILE),
        mock.patch.object(losses, "_CPU_TILE", losses._GPU_TILE),
        _CudaAutocast(),
    ):
        yield


class _CudaAutocast(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _FLOAT32_ON_CUDA and torch.is_autocast_enabled("cpu"):
            args = tuple(a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
        return function(*args, **kwargs)
