"""FLOPs of the matrix products and attentions that some work does, counted by torch as they run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Shape = torch.Size


def _forward(query: Shape, key: Shape, value: Shape, *args: object, **kwargs: object) -> int:
    return sdpa_flop_count(query, key, value)


def _backward(gradient: Shape, query: Shape, key: Shape, value: Shape, *args: object, **kwargs: object) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# Torch knows how to count attention's kernels on a GPU, but not the CPU's.
_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


def counted_flops(work: Callable[[], object]) -> int:
    """A multiplication and an addition are two."""
    with FlopCounterMode(display=False, custom_mapping=_ON_CPU) as counter:
        work()
    return counter.get_total_flops()
