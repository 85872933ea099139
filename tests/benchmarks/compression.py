"""What lossless compression of members would save, and what it would cost to read, on galaxies that are not made up."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from shards.mock.survey import MockSurvey
from shards.sample import Sample
from shards.source import Origin, all_samples
from shards.sources.desi_coadd import DesiCoadd
from shards.sources.legacy_fits import LegacyFits
from tests.benchmarks.result import seconds
from tests.conftest import REPOSITORY

MOCK_GALAXIES = 12
ROUNDS = 7


@dataclass(frozen=True)
class Codec:
    """Bytes of an array and back."""

    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, np.ndarray], np.ndarray]


def _shuffle(array: np.ndarray) -> bytes:
    """First bytes of all values, then second bytes, ..."""
    return np.ascontiguousarray(array.reshape(-1).view(np.uint8).reshape(array.size, array.itemsize).T).tobytes()


def _unshuffle(data: bytes, like: np.ndarray) -> np.ndarray:
    planes = np.frombuffer(data, np.uint8).reshape(like.itemsize, like.size)
    return np.ascontiguousarray(planes.T).view(like.dtype).reshape(like.shape)


def _compressed(name: str, level: int | None, shuffled: bool) -> Codec:
    codec = pa.Codec(name, compression_level=level)

    def encode(array: np.ndarray) -> bytes:
        return codec.compress(_shuffle(array) if shuffled else array.tobytes(), asbytes=True)

    def decode(data: bytes, like: np.ndarray) -> np.ndarray:
        plain = codec.decompress(data, like.nbytes)
        return _unshuffle(plain, like) if shuffled else np.frombuffer(plain, like.dtype).reshape(like.shape)

    return Codec(encode, decode)


CODECS = {
    "as it is": Codec(lambda array: array.tobytes(), lambda data, like: np.frombuffer(data, like.dtype).copy()),
    "zstd -1": _compressed("zstd", 1, shuffled=False),
    "shuffle + lz4": _compressed("lz4_raw", None, shuffled=True),
    "shuffle + zstd -1": _compressed("zstd", 1, shuffled=True),
    "shuffle + zstd -9": _compressed("zstd", 9, shuffled=True),
    "float16 (lossy)": Codec(
        lambda array: array.astype(np.float16).tobytes(),
        lambda data, like: np.frombuffer(data, np.float16).astype(np.float32),
    ),
}


def _arrays(source: Origin, member: str) -> list[np.ndarray]:
    found = [getattr(sample, member) for sample in all_samples(source) if isinstance(sample, Sample)]  # type: ignore[arg-type]
    return [np.ascontiguousarray(array) for array in found if array is not None]


def real_and_mock() -> dict[str, list[np.ndarray]]:
    """Arrays by what they are; real ones where the folder of real galaxies is."""
    mock = MockSurvey(MOCK_GALAXIES)
    samples = list(all_samples(mock))
    cases = {f"mock {member}": [getattr(sample, member) for sample in samples] for member in ("image", "spectrum")}
    folder = Path(os.environ.get("ASTROCLIP_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if folder.is_dir():
        cutouts = LegacyFits([folder / "images/decals_float_grz" / f"example_{letter}.fits" for letter in "abc"])
        coadds = [*(folder / "desi/fastspecfit").glob("coadd-*"), *(folder / "desi/specutils").glob("coadd-*")]
        cases |= {
            "Legacy Survey image": _arrays(cutouts, "image"),
            "DESI spectrum": _arrays(DesiCoadd(coadds, []), "spectrum"),
            "DESI ivar": _arrays(DesiCoadd(coadds, []), "ivar"),
        }
    return cases


def _decode_rate(codec: Codec, arrays: Sequence[np.ndarray], encoded: Sequence[bytes]) -> float:
    """Bytes of arrays a second, the median of some rounds, on one processor."""

    def decode_all() -> None:
        for data, array in zip(encoded, arrays, strict=True):
            codec.decode(data, array)

    return sum(array.nbytes for array in arrays) / statistics.median(seconds(decode_all) for _ in range(ROUNDS))


def print_compression() -> None:
    print(f"{'lossless compression, array by array':<40}{'arrays':>8}{'times smaller':>15}{'decoded, GB/s':>15}")
    for what, arrays in real_and_mock().items():
        for name, codec in CODECS.items():
            encoded = [codec.encode(array) for array in arrays]
            saved = sum(array.nbytes for array in arrays) / sum(map(len, encoded))
            rate = _decode_rate(codec, arrays, encoded) / 1e9
            print(f"{what + ', ' + name:<40}{len(arrays):>8}{saved:>15.2f}{rate:>15.2f}")
    print()
