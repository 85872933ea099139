"""``astroclip doctor``."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add ``doctor`` to the command; ``args.run(args)`` does the work and gives the exit code."""
    parser = subparsers.add_parser(
        "doctor",
        help="what this machine can do for a run, what is missing, and how to mend it",
        description="Examine this machine, and what a run would read and write from it. Exit code 1: a problem.",
    )
    parser.add_argument(
        "what",
        nargs="*",
        metavar="CONFIG|URL",
        help="a configuration with its key=value; a dataset, which is read; any other URL, below which an object is"
        " written and removed, as a run would",
    )
    parser.add_argument(
        "--each-node",
        action="store_true",
        help="examine all nodes of the Slurm job or Ray cluster that this runs in, and their network",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from astroclip_dist.doctor.checks import CHECKS
    from astroclip_dist.doctor.context import context_of
    from astroclip_dist.doctor.examination import examine
    from astroclip_dist.doctor.showing import as_json, is_well, lines, verdict

    if args.each_node:
        return _examine_each_node(args)
    all_examined = []
    for examined in examine(context_of(args.what), CHECKS):
        all_examined.append(examined)
        if not args.json:
            for line in lines(examined):
                print(line, flush=True)
    print(json.dumps(as_json(all_examined)) if args.json else verdict(all_examined))
    return 0 if is_well(all_examined) else 1


def _examine_each_node(args: argparse.Namespace) -> int:
    from astroclip_dist.doctor.context import context_of
    from astroclip_dist.doctor.each_node import lines_of_nodes, reports_of_each_node

    # What is wrong here would be on every node.
    context_of(args.what)
    reports = reports_of_each_node(args.what)
    is_well = all(report["ok"] for report in reports)
    print(json.dumps({"ok": is_well, "nodes": reports}) if args.json else "\n".join(lines_of_nodes(reports)))
    return 0 if is_well else 1
