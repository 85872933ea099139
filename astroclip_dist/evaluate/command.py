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
        "--run", dest="run_folder", metavar="RUN_URL", help="the run folder of the training, for its loss curve"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.set_defaults(run=run_evaluate)


def run_evaluate(args: argparse.Namespace) -> int:
    """Write the report and print where it stands."""
    # Plotting, MLflow and torch take seconds to load: only for those who evaluate.
    from astroclip_dist.evaluate.report import evaluate

    results = evaluate(args.embeddings, args.out, args.run_folder)
    print(json.dumps(results) if args.json else f"{results['verdict']}\n\nreport: {args.out}")
    return 0
