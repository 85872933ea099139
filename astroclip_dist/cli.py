"""The ``astroclip`` command: parses, calls, prints.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 75 saved and left, to be started again, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys

from astroclip_dist import __version__
from astroclip_dist.config import dump_config, load_config
from astroclip_dist.errors import ConfigError, UserError


def main(argv: list[str] | None = None) -> int:
    """Run one command."""
    args = _parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return args.run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has seen enough (astroclip ... | head); Python would complain again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    # argparse takes key=value only before the options.
    if rest and (not hasattr(args, "override") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.override = [*args.override, *rest]
    return args


def _parser() -> argparse.ArgumentParser:
    from astroclip_dist.doctor.command import add_parser as add_doctor
    from astroclip_dist.embed.command import add_parser as add_embed
    from astroclip_dist.evaluate.command import add_parser as add_evaluate
    from astroclip_dist.plan.command import add_parser as add_plan
    from astroclip_dist.runs.command import add_parser as add_runs
    from launchers.jobs.command import add_parser as add_jobs
    from shards.command import add_parser as add_shards

    parser = argparse.ArgumentParser("astroclip", description="Pre-train galaxy foundation models at survey scale.")
    parser.add_argument("--version", action="version", version=f"astroclip {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_doctor(commands)
    add_shards(commands)
    _add_config(commands)
    add_plan(commands)
    _add_train(commands)
    add_jobs(commands, _parse)
    add_runs(commands)
    add_embed(commands)
    add_evaluate(commands)
    return parser


def _add_config(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    config = commands.add_parser("config", help="print what a configuration resolves to")
    show = config.add_subparsers(required=True, metavar="show").add_parser("show", help="print the resolved YAML")
    _add_configuration(show)
    show.set_defaults(run=lambda args: print(dump_config(load_config(args.config, args.override)), end="") or 0)


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = commands.add_parser("train", help="run a training, or go on with it, from a configuration")
    _add_configuration(train)
    train.add_argument("--dry-run", action="store_true", help="train nothing: print the memory that each rank needs")
    train.add_argument("--device-memory", metavar="SIZE", help="of a GPU, for --dry-run: '80 GB'")
    train.add_argument("--json", action="store_true", help="what --dry-run prints, for programs")
    train.set_defaults(run=_train)


def _add_configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", metavar="CONFIG", help="a YAML file, see configs/; env:NAME: a variable with its text"
    )
    parser.add_argument("override", nargs="*", metavar="key=value", help="values over those of the file")


def _train(args: argparse.Namespace) -> int:
    config = load_config(args.config, args.override)
    if args.dry_run:
        from astroclip_dist.train.dry_run import dry_run

        print(dry_run(config, args.device_memory, args.json))
        return 0
    if args.device_memory or args.json:
        raise ConfigError("astroclip train", "--device-memory, --json", "They belong to --dry-run: add it.")
    from launchers import launch

    return launch(config)


if __name__ == "__main__":
    sys.exit(main())
