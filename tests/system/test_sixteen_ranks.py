"""Sixteen processes train as one does, long enough for a difference to grow: images alone, and the alignment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from astroclip_dist.data.stored.manifest import ImageLayout
from astroclip_dist.parallel.process_group import join, leave
from tests.bare_training import BareTraining
from tests.random_survey import write_random_survey
from tests.rank_pool import RankPool

# They may have to share two cores.
_PATIENCE_S = 600.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * _PATIENCE_S)]
STEPS = 20
RUN = """
run: unused
data: {data}
length: 20 steps
batch: {{global_size: 32, lanes: 16}}
optimizer: {{lr: 1e-3}}
engine: {{name: {engine}}}
"""
IMAGES = """
objective:
  name: dinov2
  image: {width: 32, depth: 2, heads: 4, crop: 24, patch: 6, layer_scale: 1.0}
  global_views: {count: 2, size: 24}
  local_views: {count: 3, size: 12}
  head: {hidden: 64, bottleneck: 32, prototypes: 64}
  teacher: {momentum: 0.9}
  drop_path: 0.25
"""
ALIGNMENT = """
objective:
  image: {width: 32, depth: 2, heads: 4, crop: 24, patch: 6}
  spectrum: {width: 32, depth: 2, heads: 4}
  head: {embedding: 16, dropout: 0.1}
  learn_logit_scale: true
"""
# What is trained, and the engine of the sixteen.
CASES = {
    "images by centring": (IMAGES + "  targets: centring", "ddp"),
    "images by Sinkhorn": (IMAGES + "  targets: sinkhorn", "fsdp"),
    "alignment": (ALIGNMENT, "fsdp"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("random-survey")
    write_random_survey(str(folder), 200, image=ImageLayout(size=28))
    return folder.as_uri()


@pytest.fixture(scope="module")
def sixteen_ranks() -> Iterator[RankPool]:
    pool = RankPool(16, patience_s=_PATIENCE_S, preload=[__name__])
    yield pool
    pool.close()


def losses(data: str, objective: str, engine: str) -> list[float]:
    """Of the global batch; four epochs."""
    session = BareTraining(RUN.format(data=data, engine=engine) + objective)
    return [loss for loss, _ in session.train(0, STEPS)]


@pytest.mark.parametrize("case", list(CASES))
def test_sixteen_ranks_train_as_one(data: str, case: str, sixteen_ranks: RankPool) -> None:
    objective, engine = CASES[case]
    ranks = join("cpu", 60.0)
    expected = torch.tensor(losses(data, objective, "ddp"))
    leave(ranks)
    assert expected.std() > 1e-3 * expected.mean()
    for found in sixteen_ranks.run(losses, data, objective, engine):
        torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-5, atol=0)
