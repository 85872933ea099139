"""The base of every configuration section: strict, frozen, and with errors that a person can act on."""

from __future__ import annotations

import difflib
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from astroclip_dist.errors import ConfigError


class Section(BaseModel):
    """A section of the configuration: unknown keys are errors, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


S = TypeVar("S", bound=Section)


def validated(section: type[S], values: dict[str, Any]) -> S:
    """Check raw values against a section.

    Raises:
        ConfigError: every wrong field, with its value and the mend.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        problems = [_explain(section, problem) for problem in error.errors()]
        rest = "".join(f"\n{other}" for other in problems[1:])
        raise ConfigError(problems[0].field, problems[0].value, problems[0].mend + rest) from error


def _explain(section: type[Section], problem: Any) -> ConfigError:
    path, known = _walk(section, problem["loc"])
    field = ".".join(path) or "configuration"
    # A URL may carry a password, which is then the very mistake to tell.
    kind, value = problem["type"], re.sub(r"//[^/@]*@", "//***@", repr(problem["input"])[:120])
    raised = problem.get("ctx", {}).get("error")
    if isinstance(raised, ConfigError):
        return ConfigError(".".join([*path, raised.field]), raised.value, raised.mend)
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(path[-1], known, n=1)
        mend = f"Did you mean {close[0]!r}?" if close else f"Known keys here: {', '.join(sorted(known))}."
        return ConfigError(field, f"unknown key (value {value})", mend)
    if kind == "missing":
        return ConfigError(field, "missing", f"Give it in the file or on the command line: {field}=...")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = problem["ctx"].get("expected_tags") or ", ".join(_tags(section, path))
        return ConfigError(f"{field}.name", value, f"Say which: one of {tags}.")
    return ConfigError(field, value, problem["msg"].removeprefix("Value error, ").rstrip(".") + ".")


def _walk(section: type[Section], location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """The path of a field without the names of union members, and the keys that are allowed beside it."""
    path: list[str] = []
    here: list[type[Section]] = [section]
    beside: list[str] = list(section.model_fields)
    for part in map(str, location):
        chosen = [s for s in here if "name" in s.model_fields and s.model_fields["name"].default == part]
        if chosen and not any(part in s.model_fields for s in here):
            here = chosen
            continue
        path.append(part)
        beside = [key for s in here for key in s.model_fields]
        here = [member for s in here if part in s.model_fields for member in _sections_of(s, part)]
    return path, beside


def _tags(section: type[Section], path: list[str]) -> list[str]:
    here = [section]
    for part in path:
        here = [member for s in here if part in s.model_fields for member in _sections_of(s, part)]
    return [s.model_fields["name"].default for s in here if "name" in s.model_fields]


def _sections_of(section: type[Section], field: str) -> list[type[Section]]:
    found: list[type[Section]] = []
    todo: list[Any] = [section.model_fields[field].annotation]
    while todo:
        annotation = todo.pop()
        if isinstance(annotation, type) and issubclass(annotation, Section):
            found.append(annotation)
        todo.extend(reversed(getattr(annotation, "__args__", ())))
    return found
