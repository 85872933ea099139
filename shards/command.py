"""``astroclip shards``: the command line of datasets; each subcommand has a file of its own."""

from __future__ import annotations

from typing import Any

from shards.commands import build_command, info_command, repair_command, reshard_command, verify_command
from shards.crossmatch import command as crossmatch


def add_parser(subparsers: Any) -> None:
    """Add ``shards`` to the command; ``args.run(args)`` of the chosen one does the work and gives the exit code."""
    parser = subparsers.add_parser("shards", help="survey files -> dataset; check every hash; repair; describe")
    commands = parser.add_subparsers(dest="shards_command", required=True, metavar="COMMAND", title="commands")
    for module in (build_command, verify_command, repair_command, reshard_command, info_command):
        module.add_parser(commands)
    crossmatch.add_parsers(commands)
