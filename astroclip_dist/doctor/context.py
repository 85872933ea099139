"""What a machine is examined for."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from astroclip_dist.config import RunConfig, load_config
from astroclip_dist.data.stored.manifest import MANIFEST_NAME
from astroclip_dist.errors import ConfigError
from astroclip_dist.store import normalize_url

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


@dataclass(frozen=True)
class Context:
    """A run to be, or nothing but this machine.

    Attributes:
        config: of the run.
        urls: other places: a dataset is read; anything else is where a run would write.
    """

    config: RunConfig | None = None
    urls: tuple[str, ...] = ()

    @property
    def datasets(self) -> tuple[str, ...]:
        return self.config.data_urls if self.config else ()

    @property
    def run(self) -> str | None:
        return self.config.run if self.config else None

    @property
    def tracking_uri(self) -> str | None:
        """Of the run; else what MLflow's own variable says."""
        return self.config.tracking_uri() if self.config else os.environ.get("MLFLOW_TRACKING_URI")

    @property
    def folders(self) -> list[tuple[str, Path]]:
        """Local folders that a run writes, after what they are for."""
        found = []
        if self.config and self.config.reading.cache:
            found.append(("cache", Path(self.config.reading.cache.folder)))
        named = [("run", self.run or ""), *(("folder", url) for url in self.urls)]
        local = [(what, Path(unquote(urlsplit(url).path))) for what, url in named if url.startswith("file://")]
        # A dataset is only read.
        return found + [(what, folder) for what, folder in local if not (folder / MANIFEST_NAME).is_file()]

    @property
    def uses_several_machines(self) -> bool:
        """Whether ranks may have to reach each other over a network."""
        nodes = os.environ.get("SLURM_NNODES", "1")
        return nodes != "1" or "RAY_ADDRESS" in os.environ


def context_of(arguments: list[str]) -> Context:
    """From the command line: at most one CONFIG (a YAML file, or env:NAME), its overrides ``key=value``, and URLs.

    Raises:
        ConfigError: two configurations, an override without one, or something that is neither.
    """
    configs, overrides, urls = [], [], []
    for argument in arguments:
        if _OVERRIDE.match(argument):
            overrides.append(argument)
        elif argument.startswith("env:") or Path(argument).suffix in (".yaml", ".yml"):
            configs.append(argument)
        elif "://" in argument or Path(argument).is_dir():
            urls.append(normalize_url(argument))
        else:
            raise ConfigError("astroclip doctor", argument, "Give a configuration (.yaml), a URL or a folder.")
    if len(configs) > 1:
        raise ConfigError("astroclip doctor", " and ".join(configs), "Give one configuration at a time.")
    if overrides and not configs:
        raise ConfigError("astroclip doctor", " ".join(overrides), "Values belong to a configuration: give it, too.")
    return Context(load_config(configs[0], overrides) if configs else None, tuple(urls))
