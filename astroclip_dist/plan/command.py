"""``astroclip plan``: what a run will take, and whether it fits."""

from __future__ import annotations

import argparse
import json
from typing import Any

from astroclip_dist.plan.assumptions import QUANTITIES


def add_parser(subparsers: Any) -> None:
    """Add ``plan`` to the command; ``args.run(args)`` does the work and gives the exit code."""
    parser = subparsers.add_parser("plan", help="memory, hours, bytes and failures of a run, before it starts")
    parser.add_argument(
        "config", metavar="CONFIG", help="a YAML file, see configs/; env:NAME: a variable with its text"
    )
    parser.add_argument("override", nargs="*", metavar="key=value", help="values over those of the file")
    parser.add_argument("--gpu", metavar="NAME", help="H100, A100, ...: its memory and peak; an H100 if unset")
    for quantity in QUANTITIES:
        usual = f" ({quantity.usual})" if quantity.usual else ""
        parser.add_argument(f"--{quantity.option}", metavar="N", help=f"{quantity.what}{usual}".replace("%", "%%"))
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> int:
    from astroclip_dist.config import load_config
    from astroclip_dist.errors import ConfigError
    from astroclip_dist.plan.assumptions import Assumptions
    from astroclip_dist.plan.estimate import plan_of
    from astroclip_dist.plan.wording import as_json, in_words, mend

    given = {quantity.name: getattr(args, quantity.name) for quantity in QUANTITIES}
    assumptions = Assumptions({name: text for name, text in given.items() if text is not None})
    plan = plan_of(load_config(args.config, args.override), args.gpu, assumptions)
    print(json.dumps(as_json(plan)) if args.json else in_words(plan), flush=True)
    if not plan.fits:
        needed, there = plan.needs[0].total / 1e9, plan.device.memory / 1e9
        raise ConfigError("memory of a GPU", f"{there:.1f} GB; this run needs {needed:.1f} GB", mend(plan))
    return 0
