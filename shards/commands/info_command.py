"""``astroclip shards info DATASET``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from shards.commands.build_command import DATASET_HELP


def add_parser(commands: Any) -> None:
    describer = commands.add_parser("info", help="describe a dataset")
    describer.add_argument("dataset", metavar="DATASET", help=DATASET_HELP)
    describer.add_argument("--contact-sheet", type=Path, metavar="PNG", help="also draw its first galaxies here")
    describer.add_argument("--galaxies", type=int, default=12, metavar="N", help="how many to draw (default 12)")
    describer.add_argument("--json", action="store_true", help="print JSON")
    describer.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Describe a dataset, and draw its contact sheet when asked."""
    from shards.showing.info import describe, print_summary, write_contact_sheet

    summary = describe(args.dataset)
    if args.contact_sheet is not None:
        write_contact_sheet(args.dataset, args.contact_sheet, args.galaxies)
    print_summary(summary, args.json)
    return 0
