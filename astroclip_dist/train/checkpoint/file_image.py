"""A safetensors file in memory, laid out once and filled again at every save.

Format: 8 bytes with the header's length (little-endian), a JSON header that gives dtype, shape and data offsets of each
tensor, then the data without gaps (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from isal import isal_zlib
from torch import Tensor

# Names of the types in the format.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Part(NamedTuple):
    """A rectangular part of a tensor of the state; ``offsets`` say where it begins in the whole."""

    tensor: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype

    @property
    def key(self) -> str:
        """Its name in the file."""
        return f"{self.tensor}@{','.join(map(str, self.offsets))}"

    @property
    def bytes(self) -> int:
        return math.prod(self.sizes) * self.dtype.itemsize


class Place(NamedTuple):
    """Where a part lies in a file, and what its bytes are."""

    at: int
    bytes: int
    crc32: int


@dataclass(frozen=True)
class WrittenFile:
    """What the manifest is to know of a file.

    Attributes:
        places: by tensor and offsets of each part.
    """

    name: str
    bytes: int
    sha256: str
    header_bytes: int
    header_crc32: int
    places: dict[tuple[str, tuple[int, ...]], Place]


def pack(file: WrittenFile) -> bytes:
    """For another rank, as one piece."""
    places = [(*key, *place) for key, place in file.places.items()]
    return json.dumps({**vars(file), "places": places}).encode()


def unpack(data: bytes) -> WrittenFile:
    """The inverse of ``pack``."""
    about = json.loads(data)
    places = {(tensor, tuple(offsets)): Place(*place) for tensor, offsets, *place in about.pop("places")}
    return WrittenFile(**about, places=places)


class FileImage:
    """The bytes of one file; ``view`` gives each part's tensor among them, to copy values into.

    Args:
        pinned: keep it in memory that a GPU writes to by itself.

    Raises:
        TypeError: a dtype that the format does not have.
    """

    def __init__(self, parts: Iterable[Part], *, pinned: bool) -> None:
        # Wide types first: so every part is aligned to its own type although there are no gaps.
        self._parts = sorted(parts, key=lambda part: (-part.dtype.itemsize, part.key))
        header: dict[str, object] = {}
        first = 0
        for part in self._parts:
            if part.dtype not in _DTYPES:
                raise TypeError(f"{part.tensor}: a checkpoint cannot hold {part.dtype}")
            header[part.key] = {
                "dtype": _DTYPES[part.dtype],
                "shape": list(part.sizes),
                "data_offsets": [first, first := first + part.bytes],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        head = struct.pack("<Q", len(text)) + text
        self._header_bytes = len(head)
        self._data = torch.empty(len(head) + first, dtype=torch.uint8, pin_memory=pinned)
        self.bytes()[: len(head)] = head

    def bytes(self) -> memoryview:
        """The whole file, without a copy."""
        return self._data.numpy().data

    def views(self) -> Iterable[tuple[Part, Tensor]]:
        """Each part, and the tensor among the file's bytes that holds its values."""
        at = self._header_bytes
        for part in self._parts:
            yield part, self._data[at : at + part.bytes].view(part.dtype).view(part.sizes)
            at += part.bytes

    def describe(self, name: str) -> WrittenFile:
        """Sizes and hashes of the file as it is now."""
        data, at = self.bytes(), self._header_bytes
        places = {}
        for part in self._parts:
            place = Place(at, part.bytes, isal_zlib.crc32(data[at : at + part.bytes]))
            places[part.tensor, part.offsets] = place
            at += part.bytes
        return WrittenFile(
            name,
            len(data),
            hashlib.sha256(data).hexdigest(),
            self._header_bytes,
            isal_zlib.crc32(data[: self._header_bytes]),
            places,
        )
