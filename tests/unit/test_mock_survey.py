"""The mock survey as a source: same bytes whatever the number of processes, in the order of the index."""

from __future__ import annotations

import argparse
import hashlib
import json

import numpy as np
import pytest

from astroclip_dist.errors import ConfigError, DataError
from shards.mock.survey import MockSurvey
from shards.sample import Sample, encode_metadata
from shards.source import all_samples


def digest(survey: MockSurvey) -> list[str]:
    digests = []
    for sample in all_samples(survey):
        content = hashlib.sha256(sample.key.encode() + encode_metadata(sample))
        for array in (sample.image, sample.spectrum, sample.ivar):
            assert array is not None
            content.update(array.tobytes())
        digests.append(content.hexdigest())
    return digests


def test_a_galaxy_does_not_depend_on_what_is_read_with_it() -> None:
    survey = MockSurvey(galaxies=40, seed=5, stellar_grid="builtin")
    together = list(survey.read(0, [3, 17, 30]))
    (alone,) = survey.read(0, [17])
    assert isinstance(alone, Sample)
    assert isinstance(together[1], Sample)
    assert alone.key == together[1].key == survey.keys(0)[17]
    np.testing.assert_array_equal(alone.image, together[1].image)


def test_partitions_hold_every_galaxy_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.mock.survey._PARTITION", 16)
    survey = MockSurvey(galaxies=40, seed=5, stellar_grid="builtin")
    keys = [survey.keys(partition) for partition in range(survey.partitions)]
    assert list(map(len, keys)) == [16, 16, 8]
    assert [*keys[0], *keys[1], *keys[2]] == [f"mock-5-{index}" for index in range(40)]
    (last,) = survey.read(2, [7])
    assert isinstance(last, Sample)
    assert last.key == "mock-5-39"


def test_a_longer_survey_begins_with_the_shorter_one() -> None:
    short = digest(MockSurvey(galaxies=3, seed=6, stellar_grid="builtin"))
    longer = digest(MockSurvey(galaxies=18, seed=6, stellar_grid="builtin"))
    assert longer[:3] == short


def test_arguments_and_description() -> None:
    parser = argparse.ArgumentParser()
    MockSurvey.add_arguments(parser)
    survey = MockSurvey.from_arguments(
        parser.parse_args(["--galaxies", "9", "--seed", "4", "--stellar-grid", "builtin"])
    )
    assert len(survey.keys(0)) == 9
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
    ],
)
def test_wrong_numbers_are_refused(arguments: dict[str, int], field: str) -> None:
    with pytest.raises(ConfigError) as error:
        MockSurvey(**arguments)  # type: ignore[arg-type]
    assert error.value.field == field


def test_an_unknown_grid_is_refused() -> None:
    with pytest.raises(DataError, match="bc03 or builtin"):
        MockSurvey(galaxies=1, stellar_grid="fsps")  # type: ignore[arg-type]
