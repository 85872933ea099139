"""``astroclip shards reshard DATASET [DATASET ...] OUT``."""

from __future__ import annotations

import argparse
from typing import Any

from shards.commands.build_command import add_division, add_output, split_fractions, workers


def add_parser(commands: Any) -> None:
    resharder = commands.add_parser(
        "reshard",
        help="other shard sizes or splits, or several datasets as one, without decoding",
        description="Copy the galaxies of datasets of one layout into a new dataset; to go on, repeat it.",
    )
    resharder.add_argument("datasets", metavar="DATASET", nargs="+", help="folders of datasets, taken in this order")
    resharder.add_argument("out", metavar="OUT", help="folder of the new dataset: a path or s3://bucket/prefix")
    add_division(resharder, default_splits="those of the first dataset")
    add_output(resharder)
    resharder.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reshard, and say what is there now."""
    from astroclip_dist.store import normalize_url
    from shards.building.build import build
    from shards.showing.info import print_summary, summarize
    from shards.stored.stored_datasets import StoredDatasets

    datasets = StoredDatasets(args.datasets)
    manifest = build(
        datasets,
        args.out,
        samples_per_shard=args.samples_per_shard,
        split_fractions=split_fractions(args) or datasets.split_fractions,
        duplicates=args.duplicates,
        skip_bad=args.skip_bad,
        workers=workers(args),
        contact_sheet=not args.no_contact_sheet,
    )
    print_summary({"url": normalize_url(args.out), **summarize(manifest)}, args.json)
    return 0
