"""``astroclip jobs``: hand runs to a queue, ask after them, read what they print, end them."""

from __future__ import annotations

import argparse
import io
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

_LATELY_S = 7 * 86_400.0


def add_parser(subparsers: Any, parse: Callable[[list[str]], Any]) -> None:
    """Add ``jobs`` to the command; ``args.run(args)`` of the chosen one does the work and gives the exit code.

    Args:
        parse: arguments of ``astroclip``, by which the commands of job files are checked.
    """
    parser = subparsers.add_parser("jobs", help="hand runs to a queue: this machine, Ray, Slurm, Kubernetes")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    submit = _add(commands, "submit", _submit, "hand over the job of a file; the same again changes nothing")
    submit.set_defaults(parse=parse)
    submit.add_argument("file", type=Path, metavar="JOB.yaml", help="one job, a sweep, or a pipeline of jobs")
    submit.add_argument("override", nargs="*", metavar="key=value", help="values over those of the file")
    submit.add_argument("--dry-run", action="store_true", help="hand over nothing: print exactly what would be")
    submit.add_argument("--wait", action="store_true", help="of a pipeline: stay until its last job is over")
    submit.add_argument("--json", action="store_true", help="print JSON")

    listing = _add(commands, "list", _list, "jobs that were submitted from here, and are not over or ended lately")
    listing.add_argument("--all", action="store_true", help="also those that ended more than 7 days ago")
    listing.add_argument("--json", action="store_true", help="print JSON")

    status = _add(commands, "status", _status, "all that is known of a job, and what can be done next")
    _add_name(status)
    status.add_argument("--json", action="store_true", help="print JSON")
    logs = _add(commands, "logs", _logs, "what a job has printed")
    logs.add_argument("name", metavar="NAME", help="of the job")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job is over")
    cancel = _add(commands, "cancel", _cancel, "end jobs for good")
    cancel.add_argument("names", nargs="+", metavar="NAME", help="of a job, a sweep or a pipeline")
    requeue = _add(commands, "requeue", _requeue, "let a running job save, and queue it again")
    _add_name(requeue)


def _add(commands: Any, name: str, run: Callable[[argparse.Namespace], int], what: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of a job, a sweep or a pipeline")


def _submit(args: argparse.Namespace) -> int:
    from astroclip_dist.config.load import read_layers
    from astroclip_dist.errors import ConfigError

    if "jobs" in read_layers(args.file):
        return _submit_pipeline(args)
    if args.wait:
        raise ConfigError("--wait", args.file, "It belongs to a pipeline; astroclip jobs logs -f NAME follows a job.")
    from launchers.jobs.queue import queue_at
    from launchers.jobs.spec import load_job
    from launchers.jobs.task import tasks_of

    job = load_job(args.file, args.override)
    _check_command("command", job.command, args.parse)
    tasks = tasks_of(job)
    if args.dry_run:
        return _print_request(queue_at(tasks[0].job.launcher).render(tasks), args.json)
    return _print_submissions(_desk(_again(args)).submit(tasks), args.json)


def _submit_pipeline(args: argparse.Namespace) -> int:
    from launchers.jobs.pipeline import load_pipeline, render_pipeline, submit_pipeline

    pipeline = load_pipeline(args.file, args.override)
    for stage in pipeline.stages:
        _check_command(f"jobs.{stage.key}.command", stage.job.command, args.parse)
    if args.dry_run:
        return _print_request(render_pipeline(pipeline), args.json)
    return _print_submissions(submit_pipeline(_desk(_again(args)), pipeline, args.wait), args.json)


def _check_command(field: str, command: Sequence[str] | None, parse: Callable[[list[str]], Any]) -> None:
    """Find a slip now, not when all that comes before it is done.

    Raises:
        ConfigError: what ``astroclip`` would say of the command.
    """
    from astroclip_dist.errors import ConfigError

    if command is None:
        return
    told = io.StringIO()
    try:
        with redirect_stdout(told), redirect_stderr(told):
            parse(list(command))
    except SystemExit as end:
        # That of --version is 0.
        if end.code:
            raise ConfigError(field, shlex.join(command), told.getvalue().splitlines()[-1]) from None


def _again(args: argparse.Namespace) -> list[str]:
    return [str(args.file.resolve()), *args.override]


def _print_request(text: str, as_json: bool) -> int:
    print(json.dumps({"request": text}) if as_json else text.rstrip("\n"))
    return 0


def _print_submissions(submissions: list[Any], as_json: bool) -> int:
    from launchers.jobs.showing import submission_as_json, submission_in_words

    if as_json:
        print(json.dumps([submission_as_json(submission) for submission in submissions]))
    else:
        print("\n".join(submission_in_words(submission) for submission in submissions))
    return 0


def _list(args: argparse.Namespace) -> int:
    from launchers.jobs.progress import read_progress
    from launchers.jobs.showing import job_as_json, table_of

    known = _desk().jobs()
    jobs = [job for job in known if args.all or not job.is_over_for(_LATELY_S)]
    progress = read_progress(job.record.run for job in jobs if job.record.run is not None)
    if args.json:
        print(json.dumps([job_as_json(job, progress.get(job.record.run or "")) for job in jobs]))
    else:
        print(table_of(jobs, progress, left_out=len(known) - len(jobs)))
    return 0


def _status(args: argparse.Namespace) -> int:
    return _print_jobs(_desk().jobs([args.name]), args.json)


def _print_jobs(jobs: list[Any], as_json: bool = False) -> int:
    from launchers.jobs.progress import read_progress
    from launchers.jobs.showing import job_as_json, job_in_words

    progress = read_progress(job.record.run for job in jobs if job.record.run is not None)
    about = [(job, progress.get(job.record.run or "")) for job in jobs]
    if as_json:
        print(json.dumps([job_as_json(*one) for one in about]))
    else:
        print("\n\n".join(job_in_words(*one) for one in about))
    return 0


def _logs(args: argparse.Namespace) -> int:
    desk = _desk()
    silent = True
    for line in desk.logs(args.name, args.follow):
        print(line, flush=True)
        silent = False
    if silent:
        [job] = desk.jobs([args.name])
        reason = f" ({job.status.reason})" if job.status.reason else ""
        print(f"{args.name} is {job.status.state}{reason}, and has printed nothing", file=sys.stderr)
    return 0


def _cancel(args: argparse.Namespace) -> int:
    desk = _desk()
    return _each(desk, args.names, desk.cancel, "is asked to end")


def _requeue(args: argparse.Namespace) -> int:
    desk = _desk()
    return _each(desk, [args.name], desk.requeue, "is asked to save, and then queued again")


def _each(desk: Any, given: list[str], change: Callable[[str], Any], meanwhile: str) -> int:
    """Change all jobs that are meant, whatever becomes of the others; the exit code of the worst.

    Args:
        meanwhile: what happens to one that still runs.
    """
    from astroclip_dist.errors import UserError
    from launchers.jobs.status import JobState

    worst = 0

    def tried(what: Callable[[str], Any], name: str) -> Any:
        nonlocal worst
        try:
            return what(name)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            worst = max(worst, error.exit_code)
            return None

    for name in dict.fromkeys(one for some in given for one in tried(desk.names_of, some) or ()):
        if (job := tried(change, name)) is not None:
            still = f"{meanwhile}; " if job.status.state is JobState.RUNNING else ""
            print(f"{name}: {still}{job.status.state}" + (f" ({job.status.reason})" if job.status.reason else ""))
    return worst


def _desk(again: Sequence[str] = ()) -> Any:
    from launchers.jobs.desk import JobDesk
    from launchers.jobs.records import JobRecords

    return JobDesk(JobRecords(), again)
