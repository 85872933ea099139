"""No state of a random generator belongs to a run: steps leave those of the process as they are, and ignore them.

So a checkpoint has none to keep, and a run goes on bit for bit wherever it is taken up again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from astroclip_dist.data.stored.manifest import ImageLayout
from astroclip_dist.parallel.process_group import join, leave
from tests.bare_training import BareTraining
from tests.random_survey import write_random_survey

CONFIG = """
run: unused
length: 10 steps
data: {data}
batch: {{global_size: 8, lanes: 2, window_shards: 1}}
optimizer: {{lr: 1e-3}}
objective: {objective}
"""
# Each with all that it draws: augmentation, crops, masks, dropout.
OBJECTIVES = {
    "clip": "{image: {width: 32, depth: 1, heads: 4, crop: 18, patch: 6}, spectrum: {width: 32, depth: 1, heads: 4}, "
    "head: {embedding: 16, dropout: 0.2}}",
    "masked_spectrum": "{name: masked_spectrum, masks: 3, mask_width: 2, spectrum: {width: 16, depth: 1, heads: 2}}",
    "dinov2": "{name: dinov2, image: {width: 32, depth: 1, heads: 4, crop: 24, patch: 6}, "
    "global_views: {count: 2, size: 24}, local_views: {count: 3, size: 12}, "
    "head: {hidden: 32, bottleneck: 16, prototypes: 64}}",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("random-survey")
    write_random_survey(str(folder), 60, image=ImageLayout(size=28))
    return folder.as_uri()


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """This process in a group of its own."""
    ranks = join("cpu", 60)
    yield
    leave(ranks)


def seed(number: int) -> None:
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def generators() -> tuple[bytes, bytes, int, object]:
    """The state of every generator that the process has without asking."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return torch.get_rng_state().numpy().tobytes(), np.asarray(keys).tobytes(), hash((kind, *rest)), random.getstate()


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_steps_neither_use_nor_move_the_generators_of_the_process(objective: str, data: str, alone: None) -> None:
    outcomes = []
    for number in (1, 2):
        training = BareTraining(CONFIG.format(data=data, objective=OBJECTIVES[objective]))
        seed(number)
        before = generators()
        outcomes.append(training.train(0, 3))
        assert generators() == before
    assert outcomes[0] == outcomes[1]
