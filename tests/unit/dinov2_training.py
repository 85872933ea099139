"""A tiny self-distillation that the tests of its parts train."""

from __future__ import annotations

import pytest

from astroclip_dist.data.stored.manifest import ImageLayout
from astroclip_dist.objectives.dinov2.module import SelfDistillation
from astroclip_dist.objectives.dinov2.objective import DinoObjective
from tests.bare_training import BareTraining
from tests.random_survey import write_random_survey

CONFIG = """
run: unused
data: {data}
length: 10 steps
batch: {{global_size: {samples}, lanes: {lanes}, micro_size: {micro_size}}}
optimizer: {{lr: 2e-3}}
engine: {engine}
objective:
  name: dinov2
  image: {{width: 32, depth: 2, heads: 4, crop: 24, patch: 6, layer_scale: 1.0, registers: 1}}
  global_views: {{count: 2, size: 24}}
  local_views: {{count: 3, size: 12}}
  head: {{hidden: 32, bottleneck: 16, prototypes: 64}}
  teacher: {{momentum: 0.9}}
  {options}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a survey to train on."""
    folder = tmp_path_factory.mktemp("random-survey")
    write_random_survey(str(folder), 80, image=ImageLayout(size=28))
    return folder.as_uri()


def training(
    data: str,
    options: str = "targets: centring",
    micro_size: str = "null",
    *,
    engine: str = "{name: ddp}",
    samples: int = 8,
    lanes: int = 2,
) -> BareTraining:
    """``options``: more of the objective's section."""
    return BareTraining(
        CONFIG.format(data=data, options=options, micro_size=micro_size, engine=engine, samples=samples, lanes=lanes)
    )


def objective(session: BareTraining) -> DinoObjective:
    assert isinstance(session.objective, DinoObjective)
    return session.objective


def module(session: BareTraining) -> SelfDistillation:
    assert isinstance(session.engine.module, SelfDistillation)
    return session.engine.module
