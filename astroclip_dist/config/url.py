"""URLs in a configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from astroclip_dist.errors import StorageError
from astroclip_dist.store import normalize_url


def _absolute(url: str) -> str:
    """Workers may run in another folder, or on another machine: a path is made absolute where it was written."""
    try:
        return normalize_url(url)
    except StorageError as error:
        raise ValueError(error.mend) from error


Url = Annotated[str, AfterValidator(_absolute)]
