"""The mock survey as a source: same bytes whatever the number of processes, in the order of the index."""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing

import pytest

from astroclip_dist.errors import ConfigError, DataError
from shards.mock.survey import MockSurvey
from shards.sample import encode_metadata


def digest(survey: MockSurvey) -> list[str]:
    digests = []
    for sample in survey.samples():
        content = hashlib.sha256(sample.key.encode() + encode_metadata(sample))
        for array in (sample.image, sample.spectrum, sample.ivar):
            assert array is not None
            content.update(array.tobytes())
        digests.append(content.hexdigest())
    return digests


def test_worker_count_changes_no_byte() -> None:
    one = digest(MockSurvey(galaxies=40, seed=5, workers=1, stellar_grid="builtin"))
    two = digest(MockSurvey(galaxies=40, seed=5, workers=2, stellar_grid="builtin"))
    assert len(one) == 40
    assert one == two


def test_a_longer_survey_begins_with_the_shorter_one() -> None:
    short = digest(MockSurvey(galaxies=3, seed=6, workers=1, stellar_grid="builtin"))
    longer = digest(MockSurvey(galaxies=18, seed=6, workers=1, stellar_grid="builtin"))
    assert longer[:3] == short


def test_stopping_early_ends_the_processes() -> None:
    before = set(multiprocessing.active_children())
    samples = MockSurvey(galaxies=10_000, seed=7, workers=2, stellar_grid="builtin").samples()
    assert next(samples).key == "mock-7-0"
    assert set(multiprocessing.active_children()) > before
    samples.close()  # type: ignore[attr-defined]
    assert set(multiprocessing.active_children()) == before


def test_arguments_and_description() -> None:
    parser = argparse.ArgumentParser()
    MockSurvey.add_arguments(parser)
    survey = MockSurvey.from_arguments(
        parser.parse_args(["--galaxies", "9", "--seed", "4", "--stellar-grid", "builtin"])
    )
    assert len(survey) == 9
    description = json.loads(json.dumps(survey.describe()))
    assert description["kind"] == "mock"
    assert (description["seed"], description["galaxies"], description["stellar_grid"]) == (4, 9, "builtin")
    with pytest.raises(SystemExit):
        parser.parse_args(["--seed", "4"])


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"galaxies": 0}, "--galaxies"),
        ({"galaxies": 1, "seed": -1}, "--seed"),
        ({"galaxies": 1, "workers": 0}, "--workers"),
    ],
)
def test_wrong_numbers_are_refused(arguments: dict[str, int], field: str) -> None:
    with pytest.raises(ConfigError) as error:
        MockSurvey(**arguments)  # type: ignore[arg-type]
    assert error.value.field == field


def test_an_unknown_grid_is_refused() -> None:
    with pytest.raises(DataError, match="bc03 or builtin"):
        MockSurvey(galaxies=1, stellar_grid="fsps")  # type: ignore[arg-type]
