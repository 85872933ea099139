"""Activations computed again instead of kept: nothing but memory and time changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from astroclip_dist.config.model import TransformerSize
from astroclip_dist.errors import ConfigError
from astroclip_dist.models.initial import InitialValues, initialise
from astroclip_dist.models.sequences import pack
from astroclip_dist.models.transformer import Block, Recompute
from astroclip_dist.parallel.engines import StepRates
from tests.rank_pool import RankPool
from tests.tiny_pair import configure, images, lay_out, whole_state

PRODUCTS = {"addmm", "_scaled_dot_product_flash_attention_for_cpu"}


class Operations(TorchDispatchMode):
    """Counts what is computed, and knows which of the results still exist beside the parameters."""

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._parameters = {parameter.untyped_storage()._cdata for parameter in parameters}
        self.counts: Counter[str] = Counter()
        self._results: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        self.counts[function.overloadpacket.__name__] += 1
        for result in tree_leaves(found):
            if isinstance(result, torch.Tensor):
                storage = result.untyped_storage()
                if storage._cdata not in self._parameters:
                    self._results[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return found

    def kept(self) -> int:
        """Bytes of the results that somebody still holds."""
        return sum(size for result, size in self._results.values() if not result.expired())


def run_block(recompute: Recompute) -> tuple[int, Counter[str], list[torch.Tensor]]:
    """Bytes kept for backward, what backward computed, and the gradients."""
    block = Block(TransformerSize(width=32, depth=1, heads=4), layer_scale=0.5)
    initialise(block, InitialValues(block, seed=0))
    block.recompute = recompute
    groups = [torch.randn(4, 9, 32, generator=torch.Generator().manual_seed(0)), torch.ones(6, 4, 32)]
    tokens, packing = pack(groups)
    tokens.requires_grad_()
    kept = [[torch.tensor([0, 2]), torch.tensor([1])]] * 2
    with Operations(block.parameters()) as forward:
        loss = block(tokens, packing, kept).square().sum()
    held = forward.kept()
    with Operations(block.parameters()) as backward:
        loss.backward()
    return held, backward.counts, [value.grad for value in (tokens, *block.parameters()) if value.grad is not None]


def test_less_is_kept_and_selective_computes_no_product_again() -> None:
    everything, counts, gradients = run_block("none")
    assert not PRODUCTS & counts.keys()
    without_cheap, counts_selective, gradients_selective = run_block("selective")
    assert not PRODUCTS & counts_selective.keys()
    assert counts_selective["gelu"] == 1
    input_alone, counts_full, gradients_full = run_block("full")
    assert counts_full["addmm"] == 4
    assert counts_full["_scaled_dot_product_flash_attention_for_cpu"] == 2
    assert input_alone < 0.2 * everything
    assert input_alone < without_cheap < 0.7 * everything
    for found in (gradients_selective, gradients_full):
        assert len(found) == len(gradients) == 15
        assert all(torch.equal(left, right) for left, right in zip(found, gradients, strict=True))


def two_steps(engine_name: str, recompute: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses, and the mean gradients that Adam has kept."""
    engine, losses = lay_out(configure(engine_name, f", recompute: {recompute}")), []
    for step in range(2):
        loss, _ = engine.forward(images(step))
        engine.backward(loss, last=True)
        engine.step(StepRates(1e-3, 0.05))
        losses.append(loss.item())
    return losses, {name: value for name, value in whole_state(engine).items() if name.endswith("exp_avg")}


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "fsdp, kept", "zero3"])
def test_losses_and_gradients_stay_under_every_engine(engine: str, two_ranks: RankPool) -> None:
    losses, gradients = two_ranks.run(two_steps, engine, "none")[0]
    assert len(gradients) > 40
    for recompute in ("selective", "full"):
        found, found_gradients = two_ranks.run(two_steps, engine, recompute)[0]
        assert found == losses
        for name, gradient in gradients.items():
            assert torch.allclose(found_gradients[name], gradient, rtol=1e-5, atol=1e-9), (recompute, name)


def test_the_compiler_or_the_choice_of_products_not_both() -> None:
    with pytest.raises(ConfigError, match="the compiler that keeps matrix products"):
        configure("ddp", ", recompute: selective, compile: true")
    configure("ddp", ", recompute: full, compile: true")
