"""``astroclip shards repair SOURCE ... DATASET``, ``repair copy --from URL DATASET``, ``repair index DATASET``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from shards.commands.build_command import (
    DATASET_HELP,
    SourceParser,
    add_division,
    make_source,
    split_fractions,
    workers,
)
from shards.source import SOURCES

if TYPE_CHECKING:
    from shards.checking.repair import RepairReport


def add_parser(commands: Any) -> None:
    repairer = commands.add_parser("repair", help="bring back damaged shards and indexes; exit code 1 if any is left")
    ways = repairer.add_subparsers(
        dest="source", required=True, parser_class=SourceParser, metavar="copy|index|SOURCE", title="from"
    )
    copy = ways.add_parser("copy", help="a copy of the dataset")
    copy.add_argument("--from", dest="copy", required=True, metavar="URL", help="folder of the copy")
    copy.set_defaults(run=run_copy)
    index = ways.add_parser("index", help="sound tars alone: damaged indexes")
    index.set_defaults(run=run_index)
    for parser in (copy, index):
        parser.add_argument("dataset", metavar="DATASET", help=DATASET_HELP)
        parser.add_argument("--json", action="store_true", help="print the report as JSON")
    for name in SOURCES:
        source = ways.add_parser(name, description=f"Build damaged shards again; arguments as of build {name}.")
        source.source_name = name
        source.dataset = ("dataset", "DATASET", DATASET_HELP)
        add_division(source)
        source.add_argument("--json", action="store_true", help="print the report as JSON")
        source.set_defaults(run=run_source)


def run_copy(args: argparse.Namespace) -> int:
    from shards.checking.menders import repair_from_copy

    return _print(repair_from_copy(args.dataset, args.copy), args.json)


def run_index(args: argparse.Namespace) -> int:
    from shards.checking.repair import only_indexes, repair

    return _print(repair(args.dataset, only_indexes), args.json)


def run_source(args: argparse.Namespace) -> int:
    from shards.building.plan import Plan
    from shards.checking.menders import repair_from_source
    from shards.writing.dataset_folder import full_fractions

    plan = Plan(make_source(args), args.samples_per_shard, full_fractions(split_fractions(args)), args.duplicates)
    return _print(repair_from_source(args.dataset, plan, args.skip_bad, workers(args)), args.json)


def _print(report: RepairReport, as_json: bool) -> int:
    """Say what was mended and what not; 1 when something is left."""
    if as_json:
        print(json.dumps({**dataclasses.asdict(report), "sound": report.sound}))
    else:
        lines = [f"MENDED {name}" for name in report.mended]
        lines += [f"BROKEN {name}: {why}" for name, why in report.broken.items()]
        lines += [
            f"FAULT {fault} (its file is what the manifest says: build the dataset again)" for fault in report.faults
        ]
        verdict = "sound" if report.sound else f"{len(report.broken)} files broken, {len(report.faults)} other faults"
        print("\n".join([*lines, f"{report.url}: {len(report.mended)} files mended: {verdict}"]))
    return 0 if report.sound else 1
