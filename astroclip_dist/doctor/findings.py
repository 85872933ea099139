"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

State = Literal["ok", "warning", "problem"]
Value = str | int | float | bool | None
Values = dict[str, Value]


@dataclass(frozen=True)
class Finding:
    """One thing that is so, in words and in numbers.

    Attributes:
        state: a problem keeps a run from working, or will; a warning costs speed or may become a problem.
        mend: what to do; empty where nothing needs to be done.
        values: the same for programs; a key ends with its unit.
    """

    state: State
    what: str
    mend: str = ""
    values: Values = field(default_factory=dict)


def fine(what: str, **values: Value) -> Finding:
    return Finding("ok", what, "", values)


def warning(what: str, mend: str, **values: Value) -> Finding:
    return Finding("warning", what, mend, values)


def problem(what: str, mend: str, **values: Value) -> Finding:
    return Finding("problem", what, mend, values)
