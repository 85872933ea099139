"""YAML files and command line to a checked configuration.

Precedence, weakest first: defaults of the classes; the files that a file ``extends``, in their order; the file
itself; ``key=value`` on the command line, later ones last. Mappings merge key by key, anything else replaces. Where a
section is chosen by its ``name`` (engine, objective) and a stronger layer names another one, the weaker layer's section
is dropped whole.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from astroclip_dist.config.run import RunConfig
from astroclip_dist.config.strict import validated
from astroclip_dist.errors import ConfigError


class _UniqueKeyLoader(yaml.SafeLoader):
    """A key written twice would silently lose its first value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_config(source: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """The resolved configuration of a run.

    Args:
        source: a YAML file; or ``env:NAME``, the environment variable that holds its text, as jobs carry it.
        overrides: ``key.subkey=value`` with values in YAML.

    Raises:
        ConfigError: file, field, value and mend.
    """
    scheme, _, variable = str(source).partition(":")
    values = _read_variable(variable) if scheme == "env" else read_layers(Path(source))
    for override in overrides:
        values = merge(values, parse_override(override))
    return validated(RunConfig, values)


def read_layers(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The raw values of a file merged over those of the files it extends."""
    path = path.resolve()
    if path in above:
        raise ConfigError("extends", path.name, "A file cannot extend itself, directly or through others.")
    values = parse_yaml(_read_text(path), str(path))
    extended = values.pop("extends", [])
    merged: dict[str, Any] = {}
    for name in [extended] if isinstance(extended, str) else extended:
        merged = merge(merged, read_layers(path.parent / name, (*above, path)))
    return merge(merged, values)


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """YAML text with one mapping at its top."""
    try:
        values = yaml.load(text, _UniqueKeyLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}", "not valid YAML", str(getattr(error, "problem", error))) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(where, type(values).__name__, "The file holds one mapping of keys to values.")
    return values


def parse_override(text: str) -> dict[str, Any]:
    """``a.b=value`` as nested mappings."""
    key, separator, value = text.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError("override", repr(text), "Write key=value, for example optimizer.lr=1e-4.")
    try:
        nested: Any = yaml.safe_load(value) if value else None
    except yaml.YAMLError as error:
        raise ConfigError(key, repr(value), "The value is not valid YAML: quote it.") from error
    for part in reversed(parts):
        nested = {part: nested}
    return nested


def merge(weak: dict[str, Any], strong: dict[str, Any]) -> dict[str, Any]:
    """``strong`` over ``weak``, by the rules at the top of this file."""
    merged = dict(weak)
    for key, value in strong.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            other_choice = "name" in value and value["name"] != below.get("name", value["name"])
            merged[key] = value if other_choice else merge(below, value)
        else:
            merged[key] = value
    return merged


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that loads back to the same."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def parse_config(text: str, where: str) -> RunConfig:
    """The inverse of ``dump_config``."""
    return validated(RunConfig, parse_yaml(text, where))


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise ConfigError("config file", str(path), f"It cannot be read: {error.strerror}.") from error


def _read_variable(name: str) -> dict[str, Any]:
    if (text := os.environ.get(name)) is None:
        raise ConfigError("config", f"env:{name}", "The environment has no such variable: give a file.")
    return parse_yaml(text, name)
