"""A shard while it is written: a plain WebDataset tar on the local disk, its hash, and its byte index."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from isal import isal_zlib

from astroclip_dist.data.index import ARRAY_MEMBERS, encode_index
from astroclip_dist.errors import DataError, StorageError
from shards.sample import Sample, encode_metadata

_BLOCK = tarfile.BLOCKSIZE
_LONGEST_SUFFIX = max(len(f".{member}.npy") for member in ARRAY_MEMBERS)
# A ustar header holds 100 characters of a name without folders; longer ones need extensions that not every reader has.
LONGEST_KEY = tarfile.LENGTH_NAME - _LONGEST_SUFFIX


@dataclass(frozen=True)
class ClosedShard:
    """A finished tar on the local disk and what the manifest says of it."""

    path: Path
    size: int
    samples: int
    sha256: str
    index: bytes

    @property
    def index_sha256(self) -> str:
        return hashlib.sha256(self.index).hexdigest()


class OpenShard:
    """Append samples to a tar; the same samples give the same bytes (no times, owners or ranks in the headers).

    Args:
        path: local file to write; it must not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("xb")
        self._sha256 = hashlib.sha256()
        self._offset = 0
        self._rows: list[dict[str, str | int | None]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __enter__(self) -> OpenShard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def add(self, sample: Sample) -> None:
        """Write a checked sample's members: image, spectrum, ivar (those it has), then json.

        Raises:
            DataError: the key is too long for a tar header.
            StorageError: the local disk is full.
        """
        if len(sample.key) > LONGEST_KEY:
            raise DataError(
                f"sample {sample.key}: key", f"{len(sample.key)} characters", f"Use at most {LONGEST_KEY} characters."
            )
        row: dict[str, str | int | None] = {"key": sample.key}
        for member in ARRAY_MEMBERS:
            array = getattr(sample, member)
            if array is not None:
                row |= self._append(member, f"{sample.key}.{member}.npy", _npy(array))
        row |= self._append("json", f"{sample.key}.json", encode_metadata(sample))
        self._rows.append(row)

    def close(self) -> ClosedShard:
        """End the tar and give its description."""
        self._write(bytes(2 * _BLOCK))
        try:
            self._file.close()
        except OSError as error:
            raise self._disk_error(error) from error
        return ClosedShard(self.path, self._offset, len(self), self._sha256.hexdigest(), encode_index(self._rows))

    def discard(self) -> None:
        """Remove the local file, finished or not."""
        with contextlib.suppress(OSError):  # the flush of a full disk fails once more; the file goes anyway
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _append(self, member: str, name: str, content: bytes | memoryview) -> dict[str, str | int | None]:
        header = tarfile.TarInfo(name)
        header.size = len(content)
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        start = self._offset
        self._write(content)
        self._write(bytes(-len(content) % _BLOCK))
        return {
            f"{member}_offset": start,
            f"{member}_length": len(content),
            f"{member}_crc32": isal_zlib.crc32(content),
        }

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise self._disk_error(error) from error
        self._sha256.update(data)
        self._offset += len(data)

    def _disk_error(self, error: OSError) -> StorageError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return StorageError(
            f"temporary folder {self.path.parent}",
            error.strerror,
            "Set TMPDIR to a folder with room for three shards." if full else "Set TMPDIR to a folder that works.",
        )


def _npy(array: np.ndarray) -> memoryview:
    """The array as a .npy file, version 1.0, C order (readers map its bytes without parsing a header each time)."""
    sink = io.BytesIO()
    np.lib.format.write_array(sink, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return sink.getbuffer()
