"""Ways to break a dataset's files, from a seeded generator: damage by chance, and malice that agrees with itself.

``damage`` changes bytes and leaves the hashes as they were. ``malice`` changes a file, or puts in a hostile one, and
then makes index and manifest agree with it again, as somebody with write access could.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from astroclip_dist.data.stored.index import SCHEMA, encode_index
from tests.altered import agree, edit_manifest

CANARY = "canary"


class Canary:
    """Unpickled, it leaves a file: proof that something was unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def damage(folder: Path, random: Random) -> str:
    """Change the bytes of one file; gives what was done."""
    path = random.choice(sorted(path for path in folder.iterdir()))
    data = bytearray(path.read_bytes())
    kind = random.choice(["flip", "flips", "zeros", "cut", "grow", "splice", "empty", "remove", "digit"])
    at = random.randrange(len(data))
    if kind in ("flip", "flips"):
        for _ in range(1 if kind == "flip" else 64):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif kind == "zeros":
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    elif kind == "cut":
        del data[at:]
    elif kind == "grow":
        data += random.randbytes(random.randrange(1, 2000))
    elif kind == "splice":
        other = random.randrange(len(data))
        data[at : at + 300], data[other : other + 300] = data[other : other + 300], data[at : at + 300]
    elif kind == "empty":
        data.clear()
    elif kind == "digit":
        digits = [place for place, byte in enumerate(data) if 48 <= byte < 58]
        if digits:
            data[random.choice(digits)] = 48 + random.randrange(10)
    if kind == "remove":
        path.unlink()
    else:
        path.write_bytes(data)
    return f"{kind} {path.name}"


def malice(folder: Path, random: Random) -> str:
    """Put in something hostile that index and manifest agree with; gives what was done."""
    kind = random.choice(sorted(_MALICE))
    _MALICE[kind](folder, random)
    return kind


def _shards(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.tar"))


def _index_bytes_changed(folder: Path, random: Random) -> None:
    shard = random.choice(_shards(folder))
    path = folder / f"{shard}.idx"
    data = bytearray(path.read_bytes())
    for _ in range(random.choice([1, 4, 64])):
        data[random.randrange(len(data))] = random.randrange(256)
    path.write_bytes(data)
    agree(folder, shard)


def _index_numbers_changed(folder: Path, random: Random) -> None:
    """Offsets, lengths and checksums that are absurd, or merely another sample's."""
    shard = random.choice(_shards(folder))
    path = folder / f"{shard}.idx"
    table = pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all()
    rows = table.to_pylist()
    column = random.choice([name for name in SCHEMA.names if name != "key"])
    row, other = random.choice(rows), random.choice(rows)
    largest = 2**32 - 1 if column.endswith("crc32") else 2**62
    row[column] = random.choice([0, 1, largest, other[column], None, random.randrange(10**6)])
    if random.random() < 0.3 and not column.endswith("crc32"):
        row[column] = random.choice([-1, -(2**62)])
    path.write_bytes(encode_index(rows))
    agree(folder, shard)


def _manifest_number_changed(folder: Path, random: Random) -> None:
    def change(manifest: dict[str, Any]) -> None:
        value = random.choice([0, -1, 1, 2**31, 2**62, 2**70, 1e300, "x", None, True, [], {}])
        where = random.choice(["entry", "image", "spectrum", "counts", "top"])
        if where == "entry":
            target = random.choice(manifest["shards"])
        else:
            target = manifest if where == "top" else manifest[where]
        target[random.choice(sorted(target))] = value

    edit_manifest(folder, change)


def _manifest_name_escapes(folder: Path, random: Random) -> None:
    name = random.choice(["../outside", "/etc/hostname", "a/../../outside", "..", "train-000000\x00", "x" * 5000, ""])

    def change(manifest: dict[str, Any]) -> None:
        random.choice(manifest["shards"])["name"] = name

    edit_manifest(folder, change)


def _replace_member(folder: Path, random: Random, content: bytes) -> None:
    """Append hostile bytes to a tar as a member and let the index point a sample's image at them."""
    shard = random.choice(_shards(folder))
    tar = folder / f"{shard}.tar"
    with tarfile.open(tar, "a") as archive:
        header = tarfile.TarInfo("hostile.image.npy")
        header.size = len(content)
        archive.addfile(header, io.BytesIO(content))
    at = tar.read_bytes().rindex(content)
    path = folder / f"{shard}.idx"
    rows = pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all().to_pylist()
    random.choice(rows).update(image_offset=at, image_length=len(content), image_crc32=zlib.crc32(content))
    path.write_bytes(encode_index(rows))
    agree(folder, shard)


def _member_is_a_pickle(folder: Path, random: Random) -> None:
    canary = Canary(folder.parent / CANARY)
    array = np.empty(1, object)
    array[0] = canary
    sink = io.BytesIO()
    np.lib.format.write_array(sink, array, allow_pickle=True)
    _replace_member(folder, random, random.choice([pickle.dumps(canary), sink.getvalue()]))


def _member_of_absurd_shape(folder: Path, random: Random) -> None:
    shape = random.choice([(2**40,), (2**62, 2**62), (-1,), (3, 8, 8, 0), (), (10**30,)])
    order = random.choice(["True", "False"])
    dtype = random.choice(["<f4", "<f8", ">f4", "|O", "<U1000000", "|V9", "no dtype", "[('a','<f4')]"])
    header = f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    _replace_member(folder, random, content + random.randbytes(3 * 8 * 8 * 4))


def _tar_of_hostile_members(folder: Path, random: Random) -> None:
    """A tar with links, devices, absolute names and absurd sizes in the place of a shard."""
    shard = random.choice(_shards(folder))
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=random.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])) as tar:
        for name in ("../outside", "/tmp/outside", "a" * 300, "k.image.npy"):
            header = tarfile.TarInfo(name)
            header.type = random.choice([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
            header.linkname = "/etc/hostname"
            tar.addfile(header)
    data = bytearray(sink.getvalue())
    if random.random() < 0.5:
        data[124:136] = b"\x80" + b"\xff" * 11  # a size in base 256
    (folder / f"{shard}.tar").write_bytes(data)
    agree(folder, shard)


_MALICE: dict[str, Callable[[Path, Random], None]] = {
    "index bytes changed": _index_bytes_changed,
    "index numbers changed": _index_numbers_changed,
    "manifest number changed": _manifest_number_changed,
    "manifest name escapes": _manifest_name_escapes,
    "member is a pickle": _member_is_a_pickle,
    "member of absurd shape": _member_of_absurd_shape,
    "tar of hostile members": _tar_of_hostile_members,
}
