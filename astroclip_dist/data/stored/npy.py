"""The .npy members of shards: plain numbers in C order, nothing else.

numpy's own reader evaluates the header as a Python literal, which allows far more than a shard may hold, and fails in
several threads at once on some Python versions. Here a header looks exactly as numpy writes it or is refused.
"""

from __future__ import annotations

import re

import numpy as np

_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)"
    rb"\{'descr': '([<>|](?:f[248]|[iu][1248]|b1))', 'fortran_order': False, 'shape': \(([0-9, ]*)\), \} *\n",
    re.DOTALL,
)
# magic, version and the header's length, which is told of what follows them
_PREAMBLE = 10


def parse_header(content: bytes | memoryview) -> tuple[np.dtype, tuple[int, ...], int]:
    """dtype, shape and length in bytes of the header that .npy content begins with (format version 1.0).

    Raises:
        ValueError: not such a header, or one of anything but plain numbers in C order.
    """
    found = _HEADER.match(content)
    if found is None or int.from_bytes(found[1], "little") != found.end() - _PREAMBLE:
        raise ValueError("no header of plain numbers in C order")
    return np.dtype(found[2].decode()), tuple(int(size) for size in found[3].split(b",") if size.strip()), found.end()


def decode(content: bytes | memoryview) -> np.ndarray:
    """The array of a whole .npy member; a view of its bytes.

    Raises:
        ValueError: not such a member, or one with more or fewer bytes than its shape.
    """
    dtype, shape, begin = parse_header(content)
    return np.frombuffer(content, dtype, offset=begin).reshape(shape)
