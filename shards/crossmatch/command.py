"""``astroclip shards catalogue`` and ``astroclip shards match``: arguments in, text or JSON out."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astroclip_dist.errors import ConfigError

if TYPE_CHECKING:
    from shards.crossmatch.table import Columns


def add_parsers(commands: Any) -> None:
    """Add both commands; ``args.run(args)`` of the chosen one does the work and gives the exit code."""
    cataloguer = commands.add_parser("catalogue", help="positions and identifiers of a dataset as a Parquet table")
    cataloguer.add_argument("dataset", metavar="DATASET", help="folder of the dataset: a path or s3://bucket/prefix")
    cataloguer.add_argument("out", metavar="OUT.parquet", help="the catalogue: a path or URL")
    cataloguer.add_argument("--threads", type=int, metavar="N", help="concurrent reads (default 16)")
    cataloguer.add_argument("--json", action="store_true", help="print JSON")
    cataloguer.set_defaults(run=run_catalogue)

    matcher = commands.add_parser("match", help="which galaxy of one catalogue is which of another")
    for side in ("a", "b"):
        matcher.add_argument(
            side,
            metavar=side.upper(),
            help="a .parquet or .fits table: a path or URL, or a folder of them on this machine",
        )
    matcher.add_argument("out", metavar="OUT.parquet", help="the match table: a path or URL")
    matcher.add_argument(
        "--by", choices=("position", "id"), required=True, help="mutual nearest neighbours, or equal ids"
    )
    matcher.add_argument("--radius", type=float, metavar="ARCSEC", help="by position: the largest separation")
    matcher.add_argument("--columns", nargs="+", metavar="NAME", help="by id: its columns (several count as one id)")
    matcher.add_argument("--columns-b", nargs="+", metavar="NAME", help="by id: those of B, if other than of A")
    for side in ("a", "b"):
        of = side.upper()
        matcher.add_argument(f"--key-{side}", nargs="+", metavar="NAME", help=f"key of {of} (default key)")
        matcher.add_argument(
            f"--position-{side}", nargs=2, metavar=("RA", "DEC"), help=f"position of {of}, deg (default ra dec)"
        )
        matcher.add_argument(
            f"--proper-motion-{side}", nargs=2, metavar=("PMRA", "PMDEC"), help=f"of {of}, mas/yr, times cos(dec)"
        )
        matcher.add_argument(
            f"--epoch-{side}", metavar="YEAR", help=f"of {of}'s positions: a year or a column of years"
        )
    matcher.add_argument(
        "--epoch", type=float, metavar="YEAR", help="to which catalogues with proper motions are moved"
    )
    matcher.add_argument(
        "--duplicates", choices=("refuse", "first"), default="refuse", help="by id: at an id that comes twice"
    )
    matcher.add_argument("--skip-missing", action="store_true", help="leave rows without position or id out, counted")
    matcher.add_argument("--json", action="store_true", help="print JSON")
    matcher.set_defaults(run=run_match)


def run_catalogue(args: argparse.Namespace) -> int:
    """Write the catalogue, and say what is in it."""
    from shards.crossmatch.catalogue import THREADS, write_catalogue

    if args.threads is not None and args.threads < 1:
        raise ConfigError("--threads", args.threads, "Use at least 1.")
    summary = write_catalogue(args.dataset, args.out, threads=args.threads or THREADS)
    if args.json:
        print(json.dumps(summary))
    else:
        print(f"{summary['galaxies']:,} galaxies of {summary['shards']:,} shards in {args.out}")
        if summary["without_position"]:
            print(f"{summary['without_position']:,} of them have no position")
    return 0


def run_match(args: argparse.Namespace) -> int:
    """Match, and say how many matched."""
    from shards.crossmatch.files import local_file
    from shards.crossmatch.identifier import match_by_identifier
    from shards.crossmatch.position import match_by_position
    from shards.crossmatch.table import CatalogueTable

    _check_method(args)
    columns_a, columns_b = (_columns(args, side) for side in ("a", "b"))
    with tempfile.TemporaryDirectory(prefix="astroclip-fetched-") as folder:
        a, b = (CatalogueTable(local_file(url, Path(folder) / side)) for side, url in (("a", args.a), ("b", args.b)))
        if args.by == "position":
            description = match_by_position(
                a,
                b,
                args.out,
                args.radius,
                columns_a=columns_a,
                columns_b=columns_b,
                epoch=None if args.epoch is None else _year(args.epoch),
                skip_missing=args.skip_missing,
            )
        else:
            description = match_by_identifier(
                a,
                b,
                args.out,
                args.columns,
                args.columns_b or args.columns,
                columns_a=columns_a,
                columns_b=columns_b,
                duplicates=args.duplicates,
                skip_missing=args.skip_missing,
            )
    if args.json:
        print(json.dumps(description))
    else:
        width = max(map(len, description))
        for name, value in description.items():
            counted = isinstance(value, int) and not isinstance(value, bool)
            print(f"{name:<{width}}  {value:,}" if counted else f"{name:<{width}}  {value}")
    return 0


def _check_method(args: argparse.Namespace) -> None:
    """Raises:
    ConfigError: an option of the other method, or one that is missing.
    """
    by_id = {"--columns": args.columns, "--columns-b": args.columns_b}
    by_position = {
        "--radius": args.radius,
        "--epoch": args.epoch,
        **{
            f"--{name}-{side}": getattr(args, f"{name.replace('-', '_')}_{side}")
            for name in ("position", "proper-motion", "epoch")
            for side in ("a", "b")
        },
    }
    needed, other = ("--radius", by_id) if args.by == "position" else ("--columns", by_position)
    if (by_id | by_position)[needed] is None:
        raise ConfigError(needed, "not given", f"--by {args.by} needs it.")
    for name, value in other.items():
        if value is not None:
            raise ConfigError(name, value, f"It has no meaning with --by {args.by}.")


def _columns(args: argparse.Namespace, side: str) -> Columns:
    from shards.crossmatch.table import Columns

    def given(name: str) -> Any:
        return getattr(args, f"{name}_{side}")

    proper_motion, epoch = given("proper_motion"), given("epoch")
    return Columns(
        key=tuple(given("key") or ("key",)),
        position=tuple(given("position") or ("ra", "dec")),
        proper_motion=tuple(proper_motion) if proper_motion else None,
        epoch=None if epoch is None else _epoch(epoch),
    )


def _epoch(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        return text
    return _year(number)


def _year(number: float) -> float:
    """Raises:
    ConfigError: not a Julian year.
    """
    if not 1800 <= number <= 2200:
        raise ConfigError("epoch", number, "Give a Julian year, such as 2016.0.")
    return number
