"""The measures run, and end in a line that says what they found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.result import Result, interleaved, paired_ratio
from tests.benchmarks.run_all import BEGIN, END, MEASURES, REPOSITORY, parse, table, write_into

# One needs a server, and other projects' packages that may have to be installed first; one starts Ray; one trains on
# two and on four ranks in turn; one is slow by its peer's logits; two kill workers, each of which takes a restart; one
# saves to a server, too; two take ten to twenty seconds even when small.
SLOW = (
    *("s3_stream", "shard_build", "dry_run_memory", "dinov2_step", "recovery_time", "kill_loop", "checkpoint_stall"),
    *("step_overhead", "contrastive_memory"),
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MEASURES if name != "fuzz"],
)
def test_measure_ends_in_its_result(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}", "--size", "small"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = parse(done.stdout.splitlines()[-1])
    assert result.name == name
    assert result.ratio > 0


@pytest.mark.parametrize("cases", [pytest.param(30), pytest.param(2000, marks=pytest.mark.slow)])
def test_no_broken_dataset_is_read_wrongly_or_crashes_or_hangs(cases: int) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.fuzz", "--cases", str(cases), "--first", "10000"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1500, check=True)
    assert parse(done.stdout.splitlines()[-1]).holds, done.stdout


@pytest.mark.parametrize(
    ("ratio", "goal", "holds"),
    [(0.8, ">= 0.8", True), (0.79, ">= 0.8", False), (1.1, "<= 1.1", True), (2, "<= 1.1", False)],
)
def test_goal(ratio: float, goal: str, holds: bool) -> None:
    line = Result("local_read", ratio, goal).to_json()
    assert json.loads(line)["holds"] is holds
    assert parse(line).holds is holds


@pytest.mark.parametrize("ratio", [float("nan"), float("inf"), -1.0])
def test_a_ratio_that_is_none_is_a_broken_measure(ratio: float) -> None:
    with pytest.raises(ValueError, match="the ratio is"):
        Result("local_read", ratio, ">= 0.8").to_json()


@pytest.mark.parametrize("line", ["", "no JSON", "{}", '{"name": "x", "ratio": 1, "goal": ">= 2", "holds": true}'])
def test_a_line_that_is_no_result_is_refused(line: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        parse(line)


def test_cases_take_turns_and_the_first_round_is_dropped() -> None:
    calls: list[str] = []

    def case(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    figures = interleaved({"a": lambda: case("a"), "b": lambda: case("b")}, 2)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert figures == {"a": [4.0, 5.0], "b": [3.0, 6.0]}
    assert paired_ratio([2.0, 9.0, 4.0], [1.0, 1.0, 1.0]) == 4.0


def test_only_the_part_between_the_markers_is_rewritten(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    content = table([Result("local_read", 0.5, ">= 0.8")])
    assert write_into(page, content)
    assert page.read_text() == f"before\n{BEGIN}\n{content}\n{END}\nafter\n"
    assert "| `local_read` | Batches from a local disk, over a raw" in content
    assert content.endswith("| 0.5 | >= 0.8 | no |")


def test_a_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("nothing here\n")
    assert not write_into(page, "table")
    assert page.read_text() == "nothing here\n"
    assert not write_into(tmp_path / "absent.md", "table")
