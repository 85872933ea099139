"""Build a dataset from a source: every sample checked, written and counted, with a contact sheet to look at."""

from __future__ import annotations

from contextlib import closing
from typing import TextIO

import astroclip_dist
from astroclip_dist.data.manifest import Manifest, Split
from astroclip_dist.progress import with_progress
from shards.contact_sheet import CONTACT_SHEET_NAME, GALAXIES_ON_SHEET, draw_contact_sheet
from shards.sample import Sample
from shards.source import Source, all_samples
from shards.writer import SAMPLES_PER_SHARD, ShardWriter


def build(
    source: Source,
    out_url: str,
    *,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    split_fractions: dict[Split, float] | None = None,
    contact_sheet: bool = True,
    progress: TextIO | None = None,
) -> Manifest:
    """Write all samples of a source as a dataset; any bad input stops the build and leaves nothing behind.

    Args:
        out_url: folder of the new dataset.
        samples_per_shard, split_fractions: see :class:`ShardWriter`.
        contact_sheet: also draw the first galaxies into ``contact-sheet.png`` of the dataset.
        progress: where to report (standard error when None).

    Raises:
        DataError: an input that cannot be used, or a dataset that is there already.
        StorageError: a disk is full, or the storage refuses.
    """
    description = {"kind": source.name, "astroclip_version": astroclip_dist.__version__, **source.describe()}
    shown: list[Sample] = []
    total = sum(len(source.keys(partition)) for partition in range(source.partitions))
    with ShardWriter(
        out_url,
        source.image,
        source.spectrum,
        source.ivar,
        description,
        samples_per_shard=samples_per_shard,
        split_fractions=split_fractions,
    ) as writer:
        with closing(with_progress(all_samples(source), total, "galaxies", progress)) as samples:
            for sample in samples:
                writer.add(sample)
                if len(shown) < GALAXIES_ON_SHEET:
                    shown.append(sample)
        if contact_sheet:
            writer.attach(CONTACT_SHEET_NAME, draw_contact_sheet(shown, source.image, source.spectrum))
        return writer.finish()
