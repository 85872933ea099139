"""What all measures share: the ``--size`` option, the table for people, and the last line for programs."""

from __future__ import annotations

import argparse
import json
import math
import operator
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

K = TypeVar("K")
Size = Literal["small", "default", "large"]
SIZES: tuple[Size, ...] = ("small", "default", "large")
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Result:
    """The outcome of one measure.

    Attributes:
        name: of the measure, as in ``python -m tests.benchmarks.NAME``.
        ratio: ours over the alternative, or over the physical limit.
        goal: ``>= x`` or ``<= x``.
    """

    name: str
    ratio: float
    goal: str

    @property
    def holds(self) -> bool:
        comparison, bound = self.goal.split()
        return _COMPARISONS[comparison](self.ratio, float(bound))

    def to_json(self) -> str:
        """One line. Raises ValueError for a ratio that is no number: such a measure is broken."""
        if not math.isfinite(self.ratio) or self.ratio < 0:
            raise ValueError(f"{self.name}: the ratio is {self.ratio}")
        ratio = float(f"{self.ratio:.4g}")
        return json.dumps({"name": self.name, "ratio": ratio, "goal": self.goal, "holds": self.holds})


def measure_parser(description: str | None) -> argparse.ArgumentParser:
    """The command line of a measure."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="default", help="small: seconds, to see that it works")
    return parser


def size_asked_for(description: str | None) -> Size:
    return cast(Size, measure_parser(description).parse_args().size)


def interleaved(cases: Mapping[K, Callable[[], float]], repeats: int) -> dict[K, list[float]]:
    """Measure all cases in turn, so that what else the machine does falls on all alike.

    The first round warms caches and is not kept. Every round starts with another case.

    Args:
        cases: each gives one figure a call.

    Returns:
        (repeats,) figures of each case.
    """
    names = list(cases)
    figures: dict[K, list[float]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            figure = cases[name]()
            if turn:
                figures[name].append(figure)
    return figures


def paired_ratio(ours: Sequence[float], other: Sequence[float]) -> float:
    """The median over rounds of ours / other."""
    return statistics.median(mine / theirs for mine, theirs in zip(ours, other, strict=True))


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def print_result(
    result: Result, title: str, header: Sequence[str], rows: Sequence[Sequence[object]], notes: Sequence[str] = ()
) -> None:
    """The table, what is to be said of it, then the JSON line, which is the last line of a measure's output."""
    line = result.to_json()
    table = [list(map(str, header)), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    print(title)
    for row in table:
        first, *others = row
        print("  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]))
    for note in notes:
        print(note)
    print(line, flush=True)


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
