"""A shard while it is written: a plain WebDataset tar on the local disk, its hash, and its byte index."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from isal import isal_zlib

from astroclip_dist.data.stored.index import ARRAY_MEMBERS, MEMBERS, encode_index
from astroclip_dist.errors import StorageError
from shards.sample import Sample, encode_metadata
from shards.stored_sample import StoredSample
from shards.writing.scratch import open_locked

Buffer = bytes | memoryview

_BLOCK = tarfile.BLOCKSIZE
# Of a ustar header (POSIX.1-1988).
_SIZE_FIELD, _CHECKSUM_FIELD = slice(124, 136), slice(148, 156)
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


def member_file(key: str, member: str) -> str:
    """The name of a member in the tar."""
    return f"{key}.json" if member == "json" else f"{key}.{member}.npy"


class OpenShard:
    """Append samples to a tar; the same samples give the same bytes (no times, owners or ranks in the headers).

    Args:
        path: local file to write; it must not exist.

    Raises:
        StorageError: the file cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open_locked(path)
        except OSError as error:
            raise self._disk_error(error) from error
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

    def add(self, sample: Sample | StoredSample) -> None:
        """Write a checked sample's members: image, spectrum, ivar (those it has), then json.

        Raises:
            StorageError: the local disk is full.
        """
        members = sample.members if isinstance(sample, StoredSample) else _encode(sample)
        row: dict[str, str | int | None] = {"key": sample.key}
        for member in MEMBERS:
            if member in members:
                content = members[member]
                parts = content if isinstance(content, tuple) else (content,)
                row |= self._append(member, member_file(sample.key, member), parts)
        self._rows.append(row)

    def close(self) -> ClosedShard:
        """End the tar and give its description; its file stays until the shard is discarded or moved away."""
        self._write(bytes(2 * _BLOCK))
        try:
            self._file.flush()
        except OSError as error:
            raise self._disk_error(error) from error
        return ClosedShard(self.path, self._offset, len(self), self._sha256.hexdigest(), encode_index(self._rows))

    def discard(self) -> None:
        """Remove the local file, finished or not."""
        with contextlib.suppress(OSError):  # the flush of a full disk fails once more; the file goes anyway
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _append(self, member: str, name: str, parts: tuple[Buffer, ...]) -> dict[str, str | int | None]:
        size = sum(map(len, parts))
        self._write(tar_header(name, size))
        start, checksum = self._offset, 0
        for part in parts:
            self._write(part)
            checksum = isal_zlib.crc32(part, checksum)
        self._write(bytes(-size % _BLOCK))
        return {f"{member}_offset": start, f"{member}_length": size, f"{member}_crc32": checksum}

    def _write(self, data: Buffer) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise self._disk_error(error) from error
        self._sha256.update(data)
        self._offset += len(data)

    def _disk_error(self, error: OSError) -> StorageError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return StorageError(
            str(self.path.parent),
            error.strerror,
            "Free space there: a shard needs some 700 MB, for each worker." if full else "It must be writable.",
        )


def tar_header(name: str, size: int) -> bytes:
    """The 512 bytes before a regular file, as :mod:`tarfile` writes them in the format ustar, in a sixth of the time.

    Args:
        name: at most 100 ASCII characters.
    """
    fields = bytearray(_EMPTY_HEADER)
    fields[: len(name)] = name.encode("ascii")
    fields[_SIZE_FIELD] = b"%011o\0" % size
    fields[_CHECKSUM_FIELD] = b"%06o\0 " % sum(fields)
    return bytes(fields)


def _empty_header() -> bytes:
    """A header without name and size, its checksum blank, as the sum is taken."""
    fields = bytearray(tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT))
    fields[_CHECKSUM_FIELD] = b" " * 8
    return bytes(fields)


_EMPTY_HEADER = _empty_header()


def _encode(sample: Sample) -> dict[str, Buffer | tuple[Buffer, ...]]:
    arrays = ((member, getattr(sample, member)) for member in ARRAY_MEMBERS)
    return {**{member: _npy(array) for member, array in arrays if array is not None}, "json": encode_metadata(sample)}


def _npy(array: np.ndarray) -> tuple[Buffer, ...]:
    """The array as a .npy file, version 1.0, C order: its header, and its own memory, which need not be copied."""
    plain = np.ascontiguousarray(array)
    return _npy_header(plain.dtype, plain.shape), plain.reshape(-1).view(np.uint8).data


@functools.cache
def _npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    sink = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(sink, {"descr": descr, "fortran_order": False, "shape": shape})
    return sink.getvalue()
