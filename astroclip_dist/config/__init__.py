"""Typed configuration of a run: YAML files that extend one another, overrides, strict checks."""

from astroclip_dist.config.load import dump_config, load_config, parse_config
from astroclip_dist.config.run import RunConfig

__all__ = ["RunConfig", "dump_config", "load_config", "parse_config"]
