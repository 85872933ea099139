"""Compiled blocks: really compiled, whatever hooks the engine puts around them, and the same training."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from astroclip_dist.parallel.engines import StepRates
from tests.rank_pool import RankPool
from tests.tiny_pair import configure, images, lay_out, whole_state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def patient_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    """Two processes that have time to compile, and nothing compiled before."""
    cache = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
        patch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
        pool = RankPool(2, patience_s=800.0)
        yield pool
        pool.close()


def train(engine_name: str, options: str) -> tuple[list[float], int, dict[str, int], list[str]]:
    """Losses; graphs that were compiled, and where graphs broke; names in the state."""
    import torch
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    engine, losses = lay_out(configure(engine_name, options)), []
    for step in range(3):
        loss, _ = engine.forward(images(step))
        engine.backward(loss, last=True)
        engine.step(StepRates(1e-3, 0.05))
        losses.append(loss.item())
    return losses, counters["stats"]["unique_graphs"], dict(counters["graph_break"]), sorted(whole_state(engine))


@pytest.mark.parametrize(
    ("engine", "options"), [("ddp", ""), ("fsdp", ""), ("ddp", ", recompute: full"), ("fsdp", ", precision: bf16")]
)
def test_blocks_are_compiled_and_train_the_same(engine: str, options: str, patient_ranks: RankPool) -> None:
    plain = patient_ranks.run(train, engine, options)
    compiled = patient_ranks.run(train, engine, f"{options}, compile: true")
    for (expected, none, _, names), (found, graphs, breaks, names_found) in zip(plain, compiled, strict=True):
        assert none == 0
        # One graph for the blocks with gradients, one for the teacher's without; all three blocks share them.
        assert graphs == 2
        assert not breaks
        # Fused operations round to bf16 less often.
        assert found == pytest.approx(expected, rel=0.1 if "bf16" in options else 1e-5)
        assert names_found == names
