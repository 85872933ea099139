"""One galaxy as it lies in a dataset: its members' bytes, which another dataset takes over without decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from shards.stored.reading import decode_array


@dataclass(frozen=True)
class StoredSample:
    """A sample of a dataset.

    Args:
        members: content of each member that it has.
    """

    key: str
    members: Mapping[str, bytes | memoryview] = field(repr=False)

    @property
    def image(self) -> np.ndarray | None:
        """(bands, height, width), or None. Raises DataError for bytes that are no array."""
        content = self.members.get("image")
        return None if content is None else decode_array(content, f"{self.key}.image")
