"""``manifest.json`` of a dataset: what its shards hold. Written last, so its presence means the dataset is complete."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from astroclip_dist.errors import DataError
from astroclip_dist.store import MissingObjectError, Store

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"

# Far above what is sensible; beyond lies what nobody wrote on purpose.
_LARGEST_SHARD_BYTES, _LARGEST_SHARD_SAMPLES = 1 << 46, 1 << 24
_LARGEST_IMAGE, _LARGEST_SPECTRUM = 1 << 14, 1 << 24
_END = b"\n}"
_HASH_LINE = re.compile(rb',\n  "manifest_sha256": "([0-9a-f]{64})"\n}\s*$')

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageLayout(_Strict):
    """How every image of a dataset lies: (bands, height, width), flux per pixel in nanomaggies."""

    bands: Annotated[tuple[str, ...], Field(min_length=1)] = ("g", "r", "z")
    size: Annotated[int, Field(ge=1, le=_LARGEST_IMAGE)] = 152
    pixel_scale_arcsec: float = 0.262
    dtype: Literal["float32", "float16"] = "float32"
    unit: Literal["nanomaggy"] = "nanomaggy"

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.bands), self.size, self.size


class SpectrumLayout(_Strict):
    """The common wavelength grid of a dataset's spectra (default: DESI's), vacuum, observed frame."""

    start_angstrom: float = 3600.0
    step_angstrom: float = 0.8
    size: Annotated[int, Field(ge=1, le=_LARGEST_SPECTRUM)] = 7781
    dtype: Literal["float32"] = "float32"
    unit: Literal["1e-17 erg/s/cm2/A"] = "1e-17 erg/s/cm2/A"

    @property
    def shape(self) -> tuple[int]:
        return (self.size,)


class BandStatistics(_Strict):
    """Pixel statistics of one band over the training split, in nanomaggies."""

    band: str
    mean: float
    std: float


@pydantic_dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class ShardEntry:
    """One shard: ``NAME.tar`` of so many bytes, with ``NAME.idx`` beside it.

    There are tens of thousands in a survey: slots take a quarter of a model's memory.
    """

    # Not a path: a name from a hostile manifest must not lead out of the dataset.
    name: Annotated[str, Field(pattern=r"^(train|val|test)-[0-9]{6,}$")]
    bytes: Annotated[int, Field(ge=0, le=_LARGEST_SHARD_BYTES)]
    samples: Annotated[int, Field(ge=1, le=_LARGEST_SHARD_SAMPLES)]
    split: Split
    sha256: str
    index_sha256: str


class Manifest(_Strict):
    """A complete dataset. ``source`` says which command and inputs made it."""

    schema_version: Literal[1] = 1
    source: dict[str, str | int | float | bool | None]
    image: ImageLayout | None
    spectrum: SpectrumLayout | None
    ivar: bool
    counts: dict[Split, int]
    split_fractions: dict[Split, float]
    band_statistics: tuple[BandStatistics, ...] = ()
    shards: tuple[ShardEntry, ...]


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of ``manifest.json``."""
    return seal(manifest.model_dump_json(indent=2).encode())


def seal(body: bytes) -> bytes:
    """Add the hash of an indented JSON object as its last line, so that no later change of it passes unnoticed."""
    sha256 = hashlib.sha256(body).hexdigest()
    return body.removesuffix(_END) + f',\n  "manifest_sha256": "{sha256}"'.encode() + _END


def read_manifest(store: Store, patient: bool = False) -> Manifest:
    """Read and check a dataset's manifest.

    Args:
        patient: wait for a storage that is away as long as any other request does; else say so within seconds.

    Raises:
        DataError: no manifest (the dataset is not complete, or not there), damaged, another schema version, or a wrong
            field.
        CredentialsError, StorageError: the storage refuses or does not answer.
    """
    if not patient:
        store.check()
    where = store.locate(MANIFEST_NAME)
    try:
        text = store.read(MANIFEST_NAME)
    except MissingObjectError as error:
        raise DataError(
            where, "not there", "No dataset, or one whose build has not ended: check the URL or build it again."
        ) from error
    hash_line = _HASH_LINE.search(text)
    body = text[: hash_line.start()] + _END if hash_line else text
    try:
        manifest = Manifest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        found = first.get("input")
        if field == "schema_version":
            raise DataError(
                f"{where}: schema_version",
                found,
                f"This version of astroclip reads schema {SCHEMA_VERSION}: build the dataset again with it.",
            ) from error
        raise DataError(f"{where}: {field}", repr(found)[:80], f"{first['msg']}.") from error
    if hash_line is None or hashlib.sha256(body).hexdigest().encode() != hash_line[1]:
        raise DataError(
            f"{where}: manifest_sha256",
            "not the hash of the file" if hash_line else "missing",
            "It was changed since the build: restore it from a copy, or build the dataset again.",
        )
    return manifest


def key_hash(key: str) -> int:
    """A sample's 64-bit identity: the same in every dataset, process and run (BLAKE2b of the key)."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def split_of(key: str, fractions: dict[Split, float]) -> Split:
    """The split of a galaxy, from its key alone: adding data never moves a galaxy to another split.

    Args:
        fractions: share of each split; they sum to 1.
    """
    place = key_hash(key) / 2**64
    for split in SPLITS:
        place -= fractions.get(split, 0.0)
        if place < 0:
            return split
    return max(fractions, key=lambda split: fractions[split])
