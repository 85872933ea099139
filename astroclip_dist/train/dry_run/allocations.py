"""What tensors hold memory from when to when: every storage that operations make, with a name for what it is for.

Seen from a dispatch mode, as torch's own ``torch.distributed._tools.MemTracker`` does it; that one tells module from
module, but fails at a module that is called twice, as our two-pass accumulation does.
"""

from __future__ import annotations

import sys
import weakref
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ACTIVATIONS = "activations and temporaries"
# What storages are for, by the Python file that makes them.
_BY_SOURCE = {
    "parallel/contrastive": "gathered embeddings and logits",
    "torch/distributed/fsdp": "gathered parameters and gradients on their way",
}


@dataclass
class Allocation:
    """Bytes that are held from one event to another (None: still)."""

    bytes: int
    kind: str
    born: int
    died: int | None = None


class AllocationLog(TorchDispatchMode):
    """Logs the storages made by operations on fake tensors; nothing is computed.

    What a value would decide (``if isfinite(norm)``) is answered with true, or 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self._log: list[Allocation] = []
        self._live: dict[int, Allocation] = {}
        self._now = 0

    def __enter__(self) -> Self:
        # FSDP frees and takes memory by resizing storages, which is no operation.
        self._resize = torch.UntypedStorage.resize_
        log, resize = self, self._resize

        def resize_and_log(storage: torch.UntypedStorage, size: int) -> Any:
            answer = resize(storage, size)
            log._resized(storage, size)
            return answer

        torch.UntypedStorage.resize_ = resize_and_log  # type: ignore[method-assign, assignment]
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(kind, error, trace)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its parts come here one by one
        if function is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return _one(args[0].dtype)
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self._made(leaf.untyped_storage())
        return made

    @property
    def now(self) -> int:
        """The number of events so far."""
        return self._now

    def name(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Say what the storages of some tensors are for, now and before."""
        for tensor in tensors:
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            if local.device.type != "meta":
                self._made(local.untyped_storage()).kind = kind

    def without_memory(self, tensor: Tensor, kind: str = "inputs") -> Tensor:
        """A fake tensor like a real one, as if it was made now."""
        fake = tensor.detach()
        self.name([fake], kind)
        return fake

    def peak(self, since: int) -> dict[str, int]:
        """Bytes of each kind at the moment after an event at which most were held."""
        changes = sorted(
            [(a.born, a.bytes) for a in self._log] + [(a.died, -a.bytes) for a in self._log if a.died is not None]
        )
        held = most = 0
        when = since
        for event, change in changes:
            held += change
            if event >= since and held > most:
                most, when = held, event
        kinds: dict[str, int] = defaultdict(int)
        for allocation in self._log:
            if allocation.born <= when and (allocation.died is None or allocation.died > when):
                kinds[allocation.kind] += allocation.bytes
        return dict(kinds)

    def _made(self, storage: torch.UntypedStorage) -> Allocation:
        key = storage._cdata
        known = self._live.get(key)
        if known is None:
            known = self._born(key, storage.nbytes(), _purpose())
            weakref.finalize(storage, self._died, key).atexit = False
        return known

    def _resized(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._live:
            kind = self._live[key].kind
            self._died(key)
            self._born(key, size, kind)

    def _born(self, key: int, size: int, kind: str) -> Allocation:
        self._now += 1
        allocation = Allocation(size, kind, self._now)
        self._live[key] = allocation
        self._log.append(allocation)
        return allocation

    def _died(self, key: int) -> None:
        self._now += 1
        self._live.pop(key).died = self._now


def _one(dtype: torch.dtype) -> bool | float | int:
    return True if dtype is torch.bool else 1.0 if dtype.is_floating_point else 1


def _purpose() -> str:
    """Of what is being made, by the innermost of the known files on the stack."""
    frame = sys._getframe(3)
    while frame is not None:
        path = frame.f_code.co_filename
        for part, kind in _BY_SOURCE.items():
            if part in path:
                return kind
        frame = frame.f_back  # type: ignore[assignment]
    return ACTIVATIONS
