"""``astroclip shards build|verify|info``: arguments in, text or JSON out."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from astroclip_dist.data.manifest import SPLITS
from shards.source import SOURCES, source_class
from shards.writer import SAMPLES_PER_SHARD, SPLIT_FRACTIONS

# What draws and verifies is imported when it runs: every `astroclip` command builds this parser first.


class _SourceParser(argparse.ArgumentParser):
    """The parser of ``build NAME``; asks the source for its arguments only when that source is chosen."""

    source_name = ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.source_name:
            name, self.source_name = self.source_name, ""
            source_class(name).add_arguments(self)
            # Last, so that it follows the source's input files on the command line.
            self.add_argument("out", metavar="OUT", help="folder of the new dataset: a path or s3://bucket/prefix")
        return super().parse_known_args(args, namespace)


def add_parser(subparsers: Any) -> None:
    """Add ``shards`` to the command; ``args.run(args)`` of the chosen one does the work and gives the exit code."""
    parser = subparsers.add_parser("shards", help="survey files -> dataset; check every hash; describe")
    commands = parser.add_subparsers(dest="shards_command", required=True, metavar="build|verify|info")

    builder = commands.add_parser("build", help="turn survey files or a simulation into a dataset")
    sources = builder.add_subparsers(
        dest="source", required=True, parser_class=_SourceParser, metavar="|".join(SOURCES), title="sources"
    )
    for name in SOURCES:
        source = sources.add_parser(name, description=f"Build a dataset from the source {name}.")
        source.source_name = name
        source.add_argument(
            "--samples-per-shard", type=int, default=SAMPLES_PER_SHARD, metavar="N", help="default %(default)s"
        )
        source.add_argument(
            "--splits",
            type=float,
            nargs=len(SPLITS),
            default=[SPLIT_FRACTIONS[split] for split in SPLITS],
            metavar=("TRAIN", "VAL", "TEST"),
            help="shares of the splits; 1 0 0 puts all into train (default 0.8 0.1 0.1)",
        )
        source.add_argument("--no-contact-sheet", action="store_true", help="do not draw contact-sheet.png")
        source.add_argument("--json", action="store_true", help="print the manifest's summary as JSON")
        source.set_defaults(run=run_build)

    verifier = commands.add_parser("verify", help="read a whole dataset and name every fault; exit code 1 if any")
    verifier.add_argument("dataset", metavar="DATASET", help="folder of the dataset: a path or s3://bucket/prefix")
    verifier.add_argument("--json", action="store_true", help="print the report as JSON")
    verifier.set_defaults(run=run_verify)

    describer = commands.add_parser("info", help="describe a dataset")
    describer.add_argument("dataset", metavar="DATASET", help="folder of the dataset: a path or s3://bucket/prefix")
    describer.add_argument("--contact-sheet", type=Path, metavar="PNG", help="also draw its first galaxies here")
    describer.add_argument("--galaxies", type=int, default=12, metavar="N", help="how many to draw (default 12)")
    describer.add_argument("--json", action="store_true", help="print JSON")
    describer.set_defaults(run=run_info)


def run_build(args: argparse.Namespace) -> int:
    """Build, and say what is there now."""
    from astroclip_dist.store import normalize_url
    from shards.build import build
    from shards.info import summarize

    manifest = build(
        source_class(args.source).from_arguments(args),
        args.out,
        samples_per_shard=args.samples_per_shard,
        split_fractions=dict(zip(SPLITS, args.splits, strict=True)),
        contact_sheet=not args.no_contact_sheet,
    )
    _print_summary({"url": normalize_url(args.out), **summarize(manifest)}, args.json)
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Check every byte; 1 when there is a fault."""
    from shards.verify import verify

    report = verify(args.dataset)
    if args.json:
        print(json.dumps({**dataclasses.asdict(report), "sound": report.sound}))
    else:
        for fault in report.faults:
            print(f"FAULT {fault}")
        verdict = "sound" if report.sound else f"{len(report.faults)} faults"
        print(f"{report.url}: {report.samples:,} samples, {report.shards:,} shards, {report.bytes:,} bytes: {verdict}")
    return 0 if report.sound else 1


def run_info(args: argparse.Namespace) -> int:
    """Describe a dataset, and draw its contact sheet when asked."""
    from shards.info import describe, write_contact_sheet

    summary = describe(args.dataset)
    if args.contact_sheet is not None:
        write_contact_sheet(args.dataset, args.contact_sheet, args.galaxies)
    _print_summary(summary, args.json)
    return 0


def _print_summary(summary: dict[str, Any], as_json: bool) -> None:
    from shards.info import format_summary

    print(json.dumps(summary) if as_json else format_summary(summary))
