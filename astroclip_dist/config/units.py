"""Quantities with a unit, written as people say them: ``2000 steps``, ``5 epochs``, ``10M samples``, ``30 min``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_QUANTITY = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([kM]?)\s*([a-z]*)\s*")
_PREFIX = {"": 1, "k": 1_000, "M": 1_000_000}
_TRAINING_UNITS = ("steps", "epochs", "samples")
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class TrainingLength:
    """An amount of training: optimizer steps, passes over the training split, or samples seen."""

    amount: float
    unit: str

    def steps(self, global_batch: int, steps_per_epoch: int) -> int:
        """The same as a whole number of optimizer steps, at least one."""
        if self.unit == "steps":
            steps = self.amount
        elif self.unit == "epochs":
            steps = self.amount * steps_per_epoch
        else:
            steps = self.amount / global_batch
        return max(1, round(steps))

    def __str__(self) -> str:
        amount = int(self.amount) if self.amount == int(self.amount) else self.amount
        return f"{amount!r} {self.unit}"


def _split(text: Any, units: tuple[str, ...]) -> tuple[float, str]:
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if not match or match[3] not in units:
        raise ValueError(f"write a number and its unit, one of {', '.join(units)}: for example '100 {units[0]}'")
    return float(match[1].replace("_", "")) * _PREFIX[match[2]], match[3]


def _parse_length(text: Any) -> TrainingLength:
    if isinstance(text, TrainingLength):
        return text
    amount, unit = _split(text, _TRAINING_UNITS)
    if unit == "steps" and amount != int(amount):
        raise ValueError("steps are whole numbers")
    return TrainingLength(amount, unit)


def _parse_seconds(text: Any) -> float:
    if isinstance(text, float):
        return text
    amount, unit = _split(text, tuple(_SECONDS))
    return amount * _SECONDS[unit]


Length = Annotated[
    TrainingLength, BeforeValidator(_parse_length), PlainSerializer(str), WithJsonSchema({"type": "string"})
]
Seconds = Annotated[
    float,
    BeforeValidator(_parse_seconds),
    PlainSerializer(lambda seconds: f"{seconds!r} s", return_type=str),
    WithJsonSchema({"type": "string"}),
]
