"""Headers of .npy members: those that numpy writes for plain numbers, and no others."""

from __future__ import annotations

import io

import numpy as np
import pytest

from astroclip_dist.data.stored.npy import decode, parse_header


def encoded(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    sink = io.BytesIO()
    np.lib.format.write_array(sink, array, version=version, allow_pickle=True)
    return sink.getvalue()


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<f8", ">f4", "<i8", "|u1", "|b1"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (7,), (), (0, 4), (1, 2, 3, 4)])
def test_plain_arrays_come_back(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    found = decode(encoded(array))
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


@pytest.mark.parametrize(
    "content",
    [
        encoded(np.array([None])),
        encoded(np.array(["text"])),
        encoded(np.zeros(3, "f4,i4")),
        encoded(np.asfortranarray(np.zeros((3, 4)))),
        encoded(np.zeros(3), version=(2, 0)),
        encoded(np.zeros(3))[:-1],
        encoded(np.zeros(3)) + b"x",
        encoded(np.zeros(3))[:40],
        encoded(np.zeros(3)).replace(b"(3,)", b"(-3)"),
        encoded(np.zeros(3)).replace(b"<f8", b"<f1"),
        b"",
    ],
)
def test_everything_else_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(content)


def test_a_header_says_where_the_numbers_begin() -> None:
    content = encoded(np.zeros((2, 5), "<f4"))
    assert parse_header(content) == (np.dtype("<f4"), (2, 5), len(content) - 40)
