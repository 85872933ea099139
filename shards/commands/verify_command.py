"""``astroclip shards verify DATASET``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from shards.commands.build_command import DATASET_HELP, add_workers, workers


def add_parser(commands: Any) -> None:
    verifier = commands.add_parser("verify", help="read a whole dataset and name every fault; exit code 1 if any")
    verifier.add_argument("dataset", metavar="DATASET", help=DATASET_HELP)
    add_workers(verifier, default="threads of this process")
    verifier.add_argument("--json", action="store_true", help="print the report as JSON")
    verifier.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check every byte; 1 when there is a fault."""
    from shards.checking.verify import verify

    report = verify(args.dataset, workers=workers(args))
    if args.json:
        print(json.dumps({**dataclasses.asdict(report), "sound": report.sound}))
    else:
        for fault in report.faults:
            print(f"FAULT {fault}")
        verdict = "sound" if report.sound else f"{len(report.faults)} faults"
        print(f"{report.url}: {report.samples:,} samples, {report.shards:,} shards, {report.bytes:,} bytes: {verdict}")
    return 0 if report.sound else 1
