"""Quantities with a unit, written as people say them: ``2000 steps``, ``5 epochs``, ``10M samples``, ``30 min``,
``8 GB``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema

_QUANTITY = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([a-zA-Z ]*?)\s*")
_PREFIX = {"k": 1_000, "M": 1_000_000}
_TRAINING_UNITS = ("steps", "epochs", "samples")
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_BYTES = {"MB": 1e6, "GB": 1e9, "TB": 1e12}


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
    if match:
        number, word = float(match[1].replace("_", "")), match[2]
        if word in units:
            return number, word
        if word[:1] in _PREFIX and word[1:].strip() in units:
            return number * _PREFIX[word[:1]], word[1:].strip()
    raise ValueError(f"write a number and its unit, one of {', '.join(units)}: for example '100 {units[0]}'")


def _parse_length(text: Any) -> TrainingLength:
    if isinstance(text, TrainingLength):
        return text
    amount, unit = _split(text, _TRAINING_UNITS)
    if unit == "steps" and amount != int(amount):
        raise ValueError("steps are whole numbers")
    return TrainingLength(amount, unit)


def _above_zero(length: TrainingLength) -> TrainingLength:
    if not length.amount:
        raise ValueError("it must be above 0")
    return length


def _parse_seconds(text: Any) -> float:
    if isinstance(text, float):
        return text
    amount, unit = _split(text, tuple(_SECONDS))
    return amount * _SECONDS[unit]


def _parse_bytes(text: Any) -> int:
    if isinstance(text, int):
        return text
    amount, unit = _split(text, tuple(_BYTES))
    return round(amount * _BYTES[unit])


def _format_bytes(size: int) -> str:
    unit = next((unit for unit in ("TB", "GB") if size >= _BYTES[unit]), "MB")
    return f"{size / _BYTES[unit]:.15g} {unit}"


Length = Annotated[
    TrainingLength, BeforeValidator(_parse_length), PlainSerializer(str), WithJsonSchema({"type": "string"})
]
PositiveLength = Annotated[Length, AfterValidator(_above_zero)]
Seconds = Annotated[
    float,
    BeforeValidator(_parse_seconds),
    PlainSerializer(lambda seconds: f"{seconds!r} s", return_type=str),
    WithJsonSchema({"type": "string"}),
]
Bytes = Annotated[
    int,
    BeforeValidator(_parse_bytes),
    PlainSerializer(_format_bytes, return_type=str),
    WithJsonSchema({"type": "string"}),
]
