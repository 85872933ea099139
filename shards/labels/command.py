"""``--labels KIND=FILE``: label catalogues for whatever a build command reads."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shards.source import Origin, Source


def add_labels_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--labels`` and what goes with it to the parser of a source."""
    parser.add_argument(
        "--labels",
        action="append",
        default=[],
        metavar="KIND=FILE",
        help="merge labels into the metadata: provabgs, mmu-provabgs, gz-decals, or table (Parquet); repeatable",
    )
    parser.add_argument(
        "--gz-min-votes", type=int, default=3, metavar="N", help="gz-decals: galaxies with so many votes (default 3)"
    )


def with_labels(source: Source, args: argparse.Namespace) -> Origin:
    """The source with the labels that parsed arguments name; the source itself where they name none.

    Raises:
        ConfigError: a wrong ``--labels``.
        DataError: a file cannot be used.
    """
    if not args.labels:
        return source
    # Reading labels imports h5py, pyarrow and scipy: only for builds that have some.
    from shards.labels.label_file import LabelFile
    from shards.labels.labelled import Labelled

    return Labelled(source, [LabelFile.parse(text, args.gz_min_votes) for text in args.labels])
