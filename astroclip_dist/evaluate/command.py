"""``astroclip evaluate``: arguments in, report and a summary out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add ``evaluate`` to the command; ``args.run(args)`` does the work and gives the exit code."""
    parser = subparsers.add_parser("evaluate", help="downstream tables and figures: a report to open in a browser")
    parser.add_argument("embeddings", metavar="EMBEDDINGS", help="folder of embeddings: a path or s3://bucket/prefix")
    parser.add_argument("out", metavar="OUT.html", type=Path, help="the report; results.json goes into its folder")
    parser.add_argument(
        "--compare",
        metavar="NAME=EMBEDDINGS",
        action="append",
        type=_named,
        default=[],
        help="other embeddings of the same dataset, asked about the very same galaxies; may be given several times",
    )
    parser.add_argument(
        "--properties",
        metavar="NAME",
        nargs="+",
        help="numbers of the catalogue to predict beside redshift (default: masses, ages, metallicities and star "
        "formation rates where it has them)",
    )
    parser.add_argument(
        "--run", dest="run_folder", metavar="RUN_URL", help="the run that trained the embeddings: loss curve, attention"
    )
    parser.add_argument("--image-run", metavar="RUN_URL", help="an image pre-training: its attention")
    parser.add_argument("--spectrum-run", metavar="RUN_URL", help="a spectrum pre-training: what it fills in")
    parser.add_argument(
        "--spectra",
        metavar="DATASET_URL",
        help="another dataset, of which what is filled in and attended to is drawn as well",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.set_defaults(run=run_evaluate)


def run_evaluate(args: argparse.Namespace) -> int:
    """Write the report and print where it stands."""
    # Plotting, MLflow and torch take seconds to load: only for those who evaluate.
    from astroclip_dist.evaluate.gallery import Runs
    from astroclip_dist.evaluate.report import evaluate

    runs = Runs(args.run_folder, args.image_run, args.spectrum_run)
    results = evaluate(
        args.embeddings,
        args.out,
        compare_with=args.compare,
        properties=args.properties,
        runs=runs,
        spectra=args.spectra,
    )
    if args.json:
        print(json.dumps(results))
    else:
        print("\n\n".join([results["verdict"], *results["notes"], f"report: {args.out}"]))
    return 0


def _named(text: str) -> tuple[str, str]:
    name, _, url = text.partition("=")
    if not name or not url:
        raise argparse.ArgumentTypeError(f"{text}: write NAME=EMBEDDINGS")
    return name, url
