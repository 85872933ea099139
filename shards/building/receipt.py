"""What a build leaves beside its shards until its manifest is written: the settings, and a receipt for each shard.

``receipts/build.json`` comes first and says what is being built; ``receipts/NAME.json`` comes after the tar and the
index of a shard and says that they are complete. All go when the manifest is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from astroclip_dist.data.stored.manifest import ShardEntry
from astroclip_dist.errors import DataError
from astroclip_dist.store import MissingObjectError, Store
from shards.writing.band_moments import BandMoments

FOLDER = "receipts"
_SETTINGS = f"{FOLDER}/build.json"
# Requests at a time: receipts are small, and a large dataset has tens of thousands.
_THREADS = 16

Settings = dict[str, Any]


class SkippedGalaxy(BaseModel):
    """A galaxy of the source that is not in the dataset, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    partition: int
    reason: str


class Receipt(BaseModel):
    """One finished shard.

    Attributes:
        fingerprint: of the settings and the plan that made it.
        entry: for the manifest; None where no galaxy of the shard could be used.
        index_bytes: size of the index.
        moments: of the images, in the training split.
        skipped: its galaxies that could not be used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    fingerprint: str
    entry: ShardEntry | None
    index_bytes: int = 0
    moments: BandMoments | None = None
    skipped: tuple[SkippedGalaxy, ...] = ()


def fingerprint(settings: Settings, plan_digest: str) -> str:
    """The same for the same shard of the same build."""
    return hashlib.sha256((json.dumps(settings, sort_keys=True) + plan_digest).encode()).hexdigest()


def put_receipt(store: Store, receipt: Receipt) -> None:
    store.put(f"{FOLDER}/{receipt.name}.json", receipt.model_dump_json().encode())


def read_receipts(store: Store) -> dict[str, Receipt]:
    """The receipts whose shards are there with the right sizes, by the names of the shards."""
    sizes = {found.name: found.size for found in store.list()}
    names = [name for name in sizes if name.startswith(f"{FOLDER}/") and name != _SETTINGS]

    def read(name: str) -> Receipt | None:
        try:
            receipt = Receipt.model_validate_json(store.read(name))
        except (ValidationError, MissingObjectError):
            return None
        entry = receipt.entry
        if entry is not None and (
            sizes.get(f"{entry.name}.tar") != entry.bytes or sizes.get(f"{entry.name}.idx") != receipt.index_bytes
        ):
            return None
        return receipt

    with ThreadPoolExecutor(_THREADS) as pool:
        return {receipt.name: receipt for receipt in pool.map(read, names) if receipt is not None}


def put_settings(store: Store, settings: Settings) -> None:
    store.put(_SETTINGS, json.dumps(settings, indent=2, sort_keys=True).encode())


def read_settings(store: Store) -> Settings | None:
    """The settings of the build that is under way at this URL, None where there is none."""
    try:
        return json.loads(store.read(_SETTINGS))
    except MissingObjectError:
        return None
    except ValueError as error:
        raise DataError(store.locate(_SETTINGS), "damaged", "Remove this folder, and build anew.") from error


def refuse_other_settings(store: Store, found: Settings, asked: Settings) -> None:
    """Raises DataError where another build is under way at this URL, and names the first difference."""
    for name in sorted({*found, *asked}):
        if found.get(name) != asked.get(name):
            raise DataError(
                store.url,
                f"a build with {name} = {found.get(name)} has begun there, this one has {asked.get(name)}",
                "Go on with the same command as before, or remove that folder, or build into another.",
            )


def remove_receipts(store: Store) -> None:
    """Remove what this module has written; the settings last, since they say that something is there."""
    names = [found.name for found in store.list(FOLDER) if found.name != _SETTINGS]
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda name: store.delete([name]), names))
    store.delete([_SETTINGS])
    folder = store.local_path(FOLDER)
    if folder is not None:
        with contextlib.suppress(OSError):  # something of other people's is in it
            folder.rmdir()
