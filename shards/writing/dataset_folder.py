"""Where the files of a dataset lie while it is written: shards, leftovers, and last of all the manifest."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import astroclip_dist
from astroclip_dist.data.stored.manifest import MANIFEST_NAME, SPLITS, Manifest, ShardEntry, Split, encode_manifest
from astroclip_dist.errors import ConfigError, DataError, StorageError
from astroclip_dist.store import Store
from shards.defaults import SPLIT_FRACTIONS
from shards.layout import Layout
from shards.writing.band_moments import BandMoments, merge
from shards.writing.open_shard import ClosedShard
from shards.writing.scratch import remove_abandoned

SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{6,}}\.(tar|idx)")

SourceFacts = dict[str, str | int | float | bool | None]


def shard_name(split: Split, number: int) -> str:
    return f"{split}-{number:06d}"


def shard_files(entries: Sequence[ShardEntry]) -> set[str]:
    """The names of the tars and indexes."""
    return {f"{entry.name}.{kind}" for entry in entries for kind in ("tar", "idx")}


def put_shard(store: Store, name: str, split: Split, closed: ClosedShard) -> ShardEntry:
    """Put a finished shard, tar and index, into the dataset.

    Raises:
        StorageError: the storage refuses.
    """
    put_file(store, f"{name}.tar", closed.path)
    store.put(f"{name}.idx", closed.index)
    return ShardEntry(
        name=name,
        bytes=closed.size,
        samples=closed.samples,
        split=split,
        sha256=closed.sha256,
        index_sha256=closed.index_sha256,
    )


def put_file(store: Store, name: str, path: Path) -> None:
    """Put a file from :func:`shards.writing.scratch.scratch_tar`; a local dataset takes it over."""
    target = store.local_path(name)
    if target is None:
        store.put(name, path)
        return
    try:
        path.replace(target)
    except OSError as error:
        raise StorageError(str(target), error.strerror, "Another build may be writing there.") from error


def refuse_dataset(store: Store) -> None:
    """Raises DataError where a dataset is already, StorageError where the storage does not answer or refuses."""
    store.check()
    if store.exists(MANIFEST_NAME):
        raise DataError(store.locate(MANIFEST_NAME), "there already", "Choose another folder, or remove this dataset.")


def remove_shards(store: Store, keep: Collection[str] = ()) -> None:
    """Remove the shards of a build that has not ended, but those to keep, and every unfinished file."""
    stored = (found.name for found in store.list())
    store.delete([name for name in stored if SHARD_NAME.fullmatch(name) and name not in keep])
    remove_abandoned(store)


def make_manifest(
    layout: Layout,
    source: SourceFacts,
    split_fractions: dict[Split, float],
    shards: Sequence[tuple[ShardEntry, BandMoments | None]],
) -> Manifest:
    """The manifest of some shards.

    Args:
        source: what made the dataset.
        shards: in their order within each split; those of train with the moments of their images.
    """
    ordered = [(entry, moments) for split in SPLITS for entry, moments in shards if entry.split == split]
    train = merge([moments for _, moments in ordered])
    return Manifest(
        source={"astroclip_version": astroclip_dist.__version__, **source},
        image=layout.image,
        spectrum=layout.spectrum,
        ivar=layout.ivar,
        counts={split: sum(entry.samples for entry, _ in ordered if entry.split == split) for split in SPLITS},
        split_fractions=split_fractions,
        band_statistics=train.statistics(layout.image.bands) if train and layout.image else (),
        shards=tuple(entry for entry, _ in ordered),
    )


def put_manifest(store: Store, manifest: Manifest) -> None:
    """Write the manifest, whose presence says that the dataset is complete.

    Raises:
        DataError: a dataset without samples, or another build has written another manifest meanwhile.
        StorageError: the storage refuses.
    """
    if not manifest.shards:
        raise DataError(store.url, "no samples", "The source gave none: check its input.")
    content = encode_manifest(manifest)
    try:
        store.put(MANIFEST_NAME, content, create_only=True)
    except FileExistsError as error:
        if store.read(MANIFEST_NAME) == content:
            return
        raise DataError(
            store.locate(MANIFEST_NAME),
            "written by another build meanwhile",
            "Run `astroclip shards verify` on it; build into a folder of your own.",
        ) from error


def full_fractions(fractions: dict[Split, float] | None) -> dict[Split, float]:
    """The share of every split, the default where None.

    Raises:
        ConfigError: they do not sum to 1.
    """
    given = SPLIT_FRACTIONS if fractions is None else fractions
    full = {split: float(given.get(split, 0.0)) for split in SPLITS}
    if min(full.values()) < 0 or not math.isclose(sum(full.values()), 1.0, abs_tol=1e-9):
        raise ConfigError("split fractions", tuple(full.values()), "They are >= 0 and sum to 1, such as 0.8 0.1 0.1.")
    return full


def check_shard_size(samples_per_shard: int) -> None:
    """Raises ConfigError for a shard size below 1."""
    if samples_per_shard < 1:
        raise ConfigError("samples per shard", samples_per_shard, "Use at least 1; the default is 2000.")
