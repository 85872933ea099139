"""``astroclip runs``: what is in run folders, whether their checkpoints are whole, and how to tidy up after them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from astroclip_dist.runs.wording import many

RUN_HELP = "URL of a run: a path or s3://bucket/prefix"


def add_parser(subparsers: Any) -> None:
    """Add ``runs`` to the command; ``args.run(args)`` of the chosen one does the work and gives the exit code."""
    parser = subparsers.add_parser("runs", help="list runs; show one; check, thin out or send what it left")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    _add(commands, "list", _list, "all runs below a URL, one line each", "URL of a folder of runs, or of one")
    _add(commands, "show", _show, "how far a run is, its checkpoints, and what happened", RUN_HELP)
    _add(commands, "verify", _verify, "read all checkpoints of a run; exit code 1 if one is damaged", RUN_HELP)
    prune = _add(commands, "prune", _prune, "remove the checkpoints that a run need not keep", RUN_HELP)
    prune.add_argument("--keep-last", type=int, metavar="N", help="keep the newest N, instead of what run.yaml says")
    prune.add_argument("--dry-run", action="store_true", help="remove nothing: say what would be")
    sync = _add(commands, "sync", _sync, "tell MLflow what a run that has ended could not", RUN_HELP)
    sync.add_argument("--tracking-uri", metavar="URI", help="instead of what run.yaml or MLFLOW_TRACKING_URI says")


def _add(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], what: str, url: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
    parser.add_argument("url", metavar="URL", help=url)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def _list(args: argparse.Namespace) -> int:
    from astroclip_dist.runs.summary import find_runs, listing

    runs = find_runs(args.url)
    print(json.dumps([run.as_json() for run in runs]) if args.json else listing(runs))
    return 0


def _show(args: argparse.Namespace) -> int:
    from astroclip_dist.runs.showing import describe_run

    description = describe_run(args.url)
    print(json.dumps(description.as_json()) if args.json else description.in_words())
    return 0


def _verify(args: argparse.Namespace) -> int:
    from astroclip_dist.runs.checking import verify_run

    report = verify_run(args.url)
    print(json.dumps(report.as_json()) if args.json else report.in_words())
    return 0 if report.sound else 1


def _prune(args: argparse.Namespace) -> int:
    from astroclip_dist.runs.checking import prune_run

    removed = prune_run(args.url, args.keep_last, dry_run=args.dry_run)
    if args.json:
        print(json.dumps({"removed": [] if args.dry_run else removed, "surplus": removed}))
    else:
        for name in removed:
            print(f"{'would remove' if args.dry_run else 'removed'} {name}")
        if not removed:
            print("nothing to remove")
    return 0


def _sync(args: argparse.Namespace) -> int:
    from astroclip_dist.runs.sending import send_unsent_of_run

    sent, ended_as = send_unsent_of_run(args.url, args.tracking_uri)
    if args.json:
        print(json.dumps({"sent": sent, "ended_as": ended_as}))
        return 0
    if ended_as:
        print(f"nobody runs it, and MLflow had it as RUNNING: {ended_as} now")
    print(f"{many(sent, 'batch')} of records sent; MLflow has all" if sent else "nothing to send: MLflow has all")
    return 0
