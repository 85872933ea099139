"""``astroclip shards build SOURCE ... OUT``, and the options that other commands share with it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from shards.defaults import SAMPLES_PER_SHARD, SPLIT_FRACTIONS
from shards.labels.command import add_labels_argument, with_labels
from shards.source import SOURCES, source_class

# What builds is imported when it runs: every `astroclip` command makes this parser first.
if TYPE_CHECKING:
    from astroclip_dist.data.stored.manifest import Split
    from shards.building.executors import Workers
    from shards.source import Origin

DATASET_HELP = "folder of the dataset: a path or s3://bucket/prefix"
_NEW_DATASET_HELP = "folder of the new dataset: a path or s3://bucket/prefix"


class SourceParser(argparse.ArgumentParser):
    """The parser of ``build NAME``; asks the source for its arguments only when that source is chosen.

    Attributes:
        source_name: in the table of sources.
        dataset: name, metavar and help of the last argument, which follows the source's input files.
    """

    source_name = ""
    dataset = ("out", "OUT", _NEW_DATASET_HELP)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.source_name:
            name, self.source_name = self.source_name, ""
            source_class(name).add_arguments(self)
            add_labels_argument(self)
            destination, metavar, text = self.dataset
            self.add_argument(destination, metavar=metavar, help=text)
        return super().parse_known_args(args, namespace)


def add_parser(commands: Any) -> None:
    builder = commands.add_parser("build", help="turn survey files or a simulation into a dataset")
    sources = builder.add_subparsers(
        dest="source", required=True, parser_class=SourceParser, metavar="|".join(SOURCES), title="sources"
    )
    for name in SOURCES:
        source = sources.add_parser(name, description=f"Build a dataset from the source {name}; to go on, repeat it.")
        source.source_name = name
        add_division(source)
        add_output(source)
        source.set_defaults(run=run)


def add_division(parser: argparse.ArgumentParser, default_splits: str = "0.8 0.1 0.1") -> None:
    """Options that say which galaxies are taken, and into which shards; ``args.splits`` is None by default."""
    parser.add_argument(
        "--samples-per-shard", type=int, default=SAMPLES_PER_SHARD, metavar="N", help="default %(default)s"
    )
    parser.add_argument(
        "--splits",
        type=float,
        nargs=len(SPLIT_FRACTIONS),
        metavar=tuple(split.upper() for split in SPLIT_FRACTIONS),
        help=f"shares of the splits; 1 0 0 puts all into train (default {default_splits})",
    )
    parser.add_argument(
        "--duplicates",
        choices=("refuse", "first"),
        default="refuse",
        help="a key that comes twice stops the build (default), or only its first galaxy is taken and all are counted",
    )
    parser.add_argument(
        "--skip-bad",
        type=int,
        default=0,
        metavar="N",
        help="leave out up to N galaxies that cannot be used, and list them in skipped.jsonl (default 0)",
    )
    add_workers(parser)


def add_workers(parser: argparse.ArgumentParser, default: str = "one a processor, if it pays") -> None:
    parser.add_argument("--workers", type=int, metavar="N", help=f"processes of this machine (default: {default})")
    parser.add_argument("--ray-address", metavar="ADDRESS", help="a running Ray cluster instead: auto or HOST:PORT")


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-contact-sheet", action="store_true", help="do not draw contact-sheet.png")
    parser.add_argument("--json", action="store_true", help="print the manifest's summary as JSON")


def make_source(args: argparse.Namespace) -> Origin:
    """The source that the command line names, with the labels that it names."""
    return with_labels(source_class(args.source).from_arguments(args), args)


def split_fractions(args: argparse.Namespace) -> dict[Split, float] | None:
    return args.splits and dict(zip(SPLIT_FRACTIONS, args.splits, strict=True))


def workers(args: argparse.Namespace) -> Workers:
    from shards.building.executors import Workers

    return Workers(args.workers, args.ray_address)


def run(args: argparse.Namespace) -> int:
    """Build, and say what is there now."""
    from astroclip_dist.store import normalize_url
    from shards.building.build import build
    from shards.showing.info import print_summary, summarize

    manifest = build(
        make_source(args),
        args.out,
        samples_per_shard=args.samples_per_shard,
        split_fractions=split_fractions(args),
        duplicates=args.duplicates,
        skip_bad=args.skip_bad,
        workers=workers(args),
        contact_sheet=not args.no_contact_sheet,
    )
    print_summary({"url": normalize_url(args.out), **summarize(manifest)}, args.json)
    return 0
