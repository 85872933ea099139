"""Ranks that hang or fail, in real processes: who it was is found, said once, and the run goes on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.random_survey import write_random_survey
from tests.system.hanging import (
    Training,
    before_a_collective,
    fail,
    hang,
    in_backward,
    in_data,
    in_save,
)
from tests.system.training_runs import CONFIG, event, write_config

TINY = CONFIG.replace("width: 128, depth: 3", "width: 32, depth: 1").replace("length: 30 steps", "length: 12 steps")
# Long beside a step of such a model, even where other tests use the same cores.
DEADLINE_S = 6.0


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dataset; and one MLflow database for all, since creating one takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.getbasetemp() / 'training.db'}"
    MlflowClient(uri).search_experiments()
    data = tmp_path_factory.mktemp("survey")
    write_random_survey(str(data), 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield str(data)


def disturbed(
    data: str, folder: Path, where: Callable[[Callable[..., Any]], None], do: Callable[..., Any], *, rank: int, of: int
) -> Training:
    folder.mkdir()
    config = write_config(folder, data, str(folder / "run"), TINY)
    overrides = [f"workers={of}", f"health.hang_deadline={DEADLINE_S:.0f} s", "checkpoint.every=2 steps"]
    return Training(config, overrides, rank=rank, where=where, do=do)


def test_a_rank_that_hangs_is_found_and_named(survey: str, tmp_path: Path) -> None:
    """All at once: they mostly wait."""
    cases = {
        "data": disturbed(survey, tmp_path / "data", in_data, hang, rank=1, of=2),
        "backward": disturbed(survey, tmp_path / "backward", in_backward, hang, rank=0, of=2),
        "agree": disturbed(survey, tmp_path / "agree", before_a_collective, hang, rank=2, of=4),
        "save": disturbed(survey, tmp_path / "save", in_save, hang, rank=1, of=2),
    }
    culprits = {"data": 1, "backward": 0, "agree": 2, "save": 1}
    for phase, training in cases.items():
        codes = training.finish()
        run, rank = tmp_path / phase / "run", culprits[phase]
        assert codes == [70] * len(codes), training.output
        (hung,) = event(run, "hung")
        assert hung["ranks"] == [rank], training.output
        found = re.fullmatch(
            rf"rank {rank} hangs in {phase} since (\d+) s at step (\d) \(the others wait for it\)", hung["message"]
        )
        assert found, hung["message"]
        assert float(found[1]) < 2 * DEADLINE_S
        assert training.output.count(" hangs in ") == 1, training.output
        step = int(found[2])
        for number in range(len(codes)):
            text = (run / "stacks" / f"rank-{number:05d}-step-{step:09d}.txt").read_text()
            assert ("in hang\n" in text) == (number == rank), text
        # Who hangs shows its stacks in the log, too.
        assert training.output.count("stacks of all threads of rank") == 1
        when = datetime.fromisoformat(hung["time"]).timestamp()
        assert DEADLINE_S <= when - training.hangs_from < 2 * DEADLINE_S


def test_an_error_of_one_rank_is_shown_once_with_its_traceback(survey: str, tmp_path: Path) -> None:
    training = disturbed(survey, tmp_path / "fails", before_a_collective, fail, rank=3, of=4)
    assert training.finish() == [70] * 4, training.output
    lines = training.output.splitlines()
    assert len([line for line in lines if line.startswith("RuntimeError: mat1 and mat2")]) == 1, training.output
    assert training.output.count("Traceback (most recent call last)") == 1
    assert any(re.search(r"rank 3: Traceback", line) for line in lines)
    others = [line for line in lines if " failed: " in line]
    assert [re.sub(r"^[\d:]+ ", "", line) for line in others] == [
        "rank 0  rank 3 failed: mat1 and mat2 shapes cannot be multiplied (16x128 and 64x32)"
    ]
    (failed,) = event(tmp_path / "fails" / "run", "failed")
    assert failed["error"] == others[0].split("  ")[1]
