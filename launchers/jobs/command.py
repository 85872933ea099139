"""``astroclip jobs``: hand runs to a queue, ask after them, read what they print, end them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add ``jobs`` to the command; ``args.run(args)`` of the chosen one does the work and gives the exit code."""
    parser = subparsers.add_parser("jobs", help="hand runs to a queue: this machine, Ray, Slurm, Kubernetes")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    submit = commands.add_parser("submit", help="hand over the job of a file; the same again changes nothing")
    submit.add_argument("file", type=Path, metavar="JOB.yaml")
    submit.add_argument("override", nargs="*", metavar="key=value", help="values over those of the file")
    submit.add_argument("--dry-run", action="store_true", help="print exactly what would be handed over")
    submit.add_argument("--json", action="store_true", help="print JSON")
    submit.set_defaults(run=_submit)

    listing = commands.add_parser("list", help="all jobs that were submitted from here")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_list)

    status = _named(commands, "status", _status, "state, reason, restarts and progress of a job")
    status.add_argument("--json", action="store_true", help="print JSON")
    logs = _named(commands, "logs", _logs, "what a job has printed")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job is over")
    _named(commands, "cancel", _cancel, "end a job for good")
    _named(commands, "requeue", _requeue, "let a running job save and queue it again")


def _named(commands: Any, name: str, run: Any, what: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what)
    parser.add_argument("name", metavar="NAME", help="of the job")
    parser.set_defaults(run=run)
    return parser


def _submit(args: argparse.Namespace) -> int:
    from launchers.jobs.queue import queue_at
    from launchers.jobs.spec import load_job
    from launchers.jobs.task import tasks_of

    job = load_job(args.file, args.override)
    tasks = tasks_of(job)
    if args.dry_run:
        print(queue_at(job.launcher).render(tasks))
        return 0
    submissions = _desk().submit(tasks)
    if args.json:
        print(json.dumps([{"name": s.record.name, "id": s.record.job_id, "new": s.is_new} for s in submissions]))
        return 0
    for submission in submissions:
        what = "submitted" if submission.is_new else f"is there already ({submission.record.last_state})"
        print(f"{submission.record.name}  {submission.record.job_id}  {what}")
    return 0


def _list(args: argparse.Namespace) -> int:
    return _print(_desk().jobs(), args.json)


def _status(args: argparse.Namespace) -> int:
    return _print(_desk().jobs([args.name]), args.json)


def _logs(args: argparse.Namespace) -> int:
    for line in _desk().logs(args.name, args.follow):
        print(line, flush=True)
    return 0


def _cancel(args: argparse.Namespace) -> int:
    return _print([_desk().cancel(args.name)], as_json=False)


def _requeue(args: argparse.Namespace) -> int:
    return _print([_desk().requeue(args.name)], as_json=False)


def _desk() -> Any:
    from launchers.jobs.desk import JobDesk
    from launchers.jobs.records import JobRecords

    return JobDesk(JobRecords())


def _print(jobs: list[Any], as_json: bool) -> int:
    from launchers.jobs.showing import as_json_of, table_of

    print(json.dumps([as_json_of(job) for job in jobs]) if as_json else table_of(jobs))
    return 0
