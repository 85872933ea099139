"""``astroclip jobs`` at this machine's own queue: what people type, and what they are told."""

from __future__ import annotations

import json
import logging
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from astroclip_dist.cli import main
from astroclip_dist.store import Store
from astroclip_dist.train.event_log import EventLog
from astroclip_dist.train.run_folder import PROGRESS_FILE
from launchers.jobs.desk import Job
from launchers.jobs.places import LocalPlace, RayPlace
from launchers.jobs.progress import RunProgress
from launchers.jobs.records import JobRecord, JobRecords
from launchers.jobs.showing import duration, job_in_words, table_of
from launchers.jobs.status import JobState, JobStatus


@pytest.fixture(autouse=True)
def quiet_root_logger() -> Iterator[None]:
    """``main`` sends the log to standard error of the test that called it first."""
    handlers = list(logging.root.handlers)
    yield
    logging.root.handlers[:] = handlers


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ASTROCLIP_JOBS", str(tmp_path / "jobs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Astroclip:
    """The command, and what it printed last."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """What ``astroclip jobs`` prints, errors included."""
        self._capsys.readouterr()
        assert main(["jobs", *arguments]) == code
        printed = self._capsys.readouterr()
        return printed.out + printed.err

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def astroclip(capsys: pytest.CaptureFixture[str]) -> Astroclip:
    return Astroclip(capsys)


def write_job(folder: Path, **values: Any) -> str:
    """A short command as a job; it fails, since there are no runs."""
    about = {"name": "look", "command": ["runs", "list", str(folder / "runs")], "launcher": {"name": "local"}, **values}
    path = folder / "job.yaml"
    path.write_text(json.dumps(about))
    return str(path)


def until_over(astroclip: Astroclip, name: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        [job] = astroclip.json("status", name)
        if job["state"] in ("succeeded", "failed", "cancelled"):
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.1)


def test_a_job_from_its_submission_to_its_next_attempt(astroclip: Astroclip, folder: Path) -> None:
    path = write_job(folder)
    assert "no jobs: astroclip jobs submit" in astroclip("list")
    assert astroclip("submit", path) == "look: submitted as local job look.0\n"
    failed = until_over(astroclip, "look")
    assert (failed["state"], failed["id"], failed["launcher"], failed["attempt"]) == ("failed", "look.0", "local", 0)
    assert "no run there or below" in astroclip("logs", "look")
    header, line = astroclip("list").splitlines()
    assert header.split() == ["job", "launcher", "id", "state", "restarts", "step", "samples/s", "ETA", "reason"]
    assert line.split()[:5] == ["look", "local", "look.0", "failed", "0"]
    status = astroclip("status", "look")
    assert re.search(r"^state +failed: ", status, re.MULTILINE)
    # What it proposes can be typed.
    [again] = re.findall(r"^  (astroclip jobs submit .*?) +#", status, re.MULTILINE)
    _, _, *arguments = shlex.split(again)
    assert astroclip(*arguments) == "look: submitted as local job look.1, attempt 2\n"
    assert until_over(astroclip, "look")["attempt"] == 1


def test_a_dry_run_prints_the_request_and_leaves_nothing(astroclip: Astroclip, folder: Path) -> None:
    path = write_job(folder, environment={"SKY": "dark"}, secrets=["HF_TOKEN"])
    printed = astroclip("submit", path, "priority=high", "--dry-run")
    assert "SKY: dark" in printed
    assert "priority: high" in printed
    told = json.loads(astroclip("submit", path, "priority=high", "--dry-run", "--json"))
    assert told["request"].strip() == printed.strip()
    assert JobRecords().all() == []


def test_a_pipeline_is_told_from_a_job_by_its_jobs(astroclip: Astroclip, folder: Path) -> None:
    (folder / "pipeline.yaml").write_text(
        f"name: night\ndefaults: {{launcher: {{name: local}}}}\n"
        f"jobs:\n  look: {{command: [runs, list, {folder}]}}\n"
        f"  again: {{command: [runs, list, {folder}], after: look}}\n"
    )
    printed = astroclip("submit", str(folder / "pipeline.yaml"), "--dry-run")
    assert "night-look" in printed
    assert "night-again" in printed
    assert "error: --wait: " in astroclip("submit", write_job(folder), "--wait", code=2)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("[evalute, x]", "argument COMMAND: invalid choice: 'evalute'"),
        ("[evaluate, x]", "astroclip evaluate: error: the following arguments are required: OUT"),
        ("[runs, list, x, --jsom]", "astroclip: error: unrecognized arguments: --jsom"),
    ],
)
def test_a_slip_in_a_command_is_told_before_anything_is_handed_over(
    command: str, told: str, astroclip: Astroclip, folder: Path
) -> None:
    first = f"first: {{command: [runs, list, {folder}]}}"
    last = f"last: {{command: {command}, after: first}}"
    (folder / "pipeline.yaml").write_text(
        f"name: night\ndefaults: {{launcher: {{name: local}}}}\njobs: {{{first}, {last}}}\n"
    )
    printed = astroclip("submit", str(folder / "pipeline.yaml"), code=2)
    assert re.search(rf"^error: jobs\.last\.command: {command[1:-1].replace(',', '')}\. ", printed, re.MULTILINE)
    assert told in printed
    assert told in astroclip("submit", write_job(folder), f"command={command}", "--dry-run", code=2)
    assert JobRecords().all() == []


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("submit", "nowhere.yaml"), 2, "error: config file: "),
        (("submit", "job.yaml", "nods=2"), 2, "error: nods: unknown key (value 2). Did you mean 'nodes'?"),
        (("submit", "job.yaml", "queue=long"), 2, "error: queue: long. This machine has one queue: leave it out."),
        (("status", "luk"), 2, "error: name: luk. No job of that name was submitted from here"),
        (("logs", "luk"), 2, "error: name: luk. No job of that name"),
        (("requeue", "luk"), 2, "error: name: luk. No job of that name"),
        (("cancel", "luk"), 2, "error: name: luk. No job of that name"),
        (("status", "../luk"), 2, "error: name: '../luk'. No job has it"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: tuple[str, ...], code: int, told: str, astroclip: Astroclip, folder: Path
) -> None:
    write_job(folder)
    assert told in astroclip(*arguments, code=code)
    assert JobRecords().all() == []


def test_the_other_jobs_are_cancelled_where_one_cannot_be(astroclip: Astroclip, folder: Path) -> None:
    path = write_job(folder)
    astroclip("submit", path)
    astroclip("submit", path, "name=look-again")
    printed = astroclip("cancel", "look", "luk", "look-again", code=2)
    assert re.search(r"^look: ", printed, re.MULTILINE)
    assert "error: name: luk. No job of that name" in printed
    assert re.search(r"^look-again: ", printed, re.MULTILINE)
    for name in ("look", "look-again"):
        until_over(astroclip, name)


def test_how_far_a_run_is_stands_in_the_list(astroclip: Astroclip, folder: Path) -> None:
    run = Store(folder / "run")
    run.put(PROGRESS_FILE, b'{"step": 12, "steps": 40, "time": "2026-01-01T00:00:00Z"}')
    with EventLog(run) as events:
        events.write("restarting", cause="rank 1 died")
    failed = JobStatus(JobState.FAILED, ended=datetime.now(UTC).isoformat())
    JobRecords().write(RECORD.model_copy(update={"run": run.url, "last": failed}))
    [job] = astroclip.json("list")
    assert (job["progress"]["step"], job["progress"]["steps"], job["progress"]["restarts"]) == (12, 40, 1)
    assert job["progress"]["last_event"] == "restarted: rank 1 died"
    assert re.search(r"failed +1 +12/40", astroclip("list"))
    assert re.search(r"last event +restarted: rank 1 died \((just now|\d+ s ago)\)", astroclip("status", "align"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before submit", "after submit", "after release"])
def test_a_submit_to_this_machine_that_is_killed_is_finished_by_the_next(
    moment: str, astroclip: Astroclip, folder: Path
) -> None:
    path = write_job(folder)
    # Another process, which ends itself as SIGKILL would.
    kill = (
        "import os, signal, sys\n"
        "from astroclip_dist.cli import main\n"
        "from launchers.local.queue import LocalQueue\n"
        "when, name = sys.argv[1].split()\n"
        "real = getattr(LocalQueue, name)\n"
        "def killed(*arguments):\n"
        "    done = None if when == 'before' else real(*arguments)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "setattr(LocalQueue, name, killed)\n"
        "main(['jobs', 'submit', sys.argv[2]])\n"
    )
    ended = subprocess.run([sys.executable, "-c", kill, moment, path], cwd=folder, timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    [job] = astroclip.json("list")
    if moment == "before submit":
        assert (job["state"], job["id"], job["reason"]) == ("unknown", None, "was never handed over to local")
    elif moment == "after submit":
        assert (job["state"], job["id"]) == ("pending", "look.0")
        assert "its submit did not come to its end: submit it again, or cancel it" in job["reason"]
    else:
        assert job["id"] == "look.0"
    again = astroclip("submit", path)
    assert until_over(astroclip, "look")["state"] == "failed"
    if moment == "before submit":
        assert again == "look: submitted as local job look.0\n"
    elif moment == "after submit":
        assert again == "look: local job look.0 was submitted by a process that was killed; it may start now\n"


RECORD = JobRecord(
    name="align",
    digest="0",
    place=LocalPlace(),
    job_id="17",
    released=True,
    submitted="2026-01-01T00:00:00Z",
    again=("/jobs/align.yaml", "nodes=2"),
    run="s3://bucket/runs/align",
    limits={"nodes": 2, "time_limit": None},
)


def test_a_cluster_that_is_away_hides_no_other_job(astroclip: Astroclip) -> None:
    records = JobRecords()
    over = JobStatus(JobState.SUCCEEDED)
    records.write(RECORD.model_copy(update={"name": "here", "run": None, "last": over}))
    # Nobody listens at port 9.
    there = {"name": "there", "run": None, "place": RayPlace(address="http://127.0.0.1:9")}
    records.write(RECORD.model_copy(update={**there, "last": JobStatus(JobState.RUNNING)}))
    here, away = astroclip.json("list", "--all")
    assert (here["state"], away["state"]) == ("succeeded", "unknown")
    assert re.search(r"ray does not answer .*127\.0\.0\.1:9.*; last heard: running", away["reason"])
    assert "error: launcher.address: http://127.0.0.1:9" in astroclip("status", "there", code=1)
    assert "error: launcher.address: http://127.0.0.1:9" in astroclip("cancel", "there", code=1)
    assert records.all()[1].last.state is JobState.RUNNING


def test_a_list_has_what_is_not_over_and_what_ended_lately(astroclip: Astroclip) -> None:
    records, now = JobRecords(), datetime.now(UTC)
    over = JobStatus(JobState.FAILED, ended=(now - timedelta(days=8)).isoformat())
    about = {
        "long-ago": {"last": over},
        "lately": {"last": replace(over, ended=(now - timedelta(days=6)).isoformat())},
        # Nobody knows what became of it.
        "lost": {"last": JobStatus(JobState.RUNNING)},
    }
    for name, values in about.items():
        records.write(RECORD.model_copy(update={"name": name, "run": None, **values}))
    _, lately, lost, more = astroclip("list").splitlines()
    assert (lately.split()[0], lost.split()[0]) == ("lately", "lost")
    assert more == "1 job ended longer ago: astroclip jobs list --all"
    assert [job["name"] for job in astroclip.json("list")] == ["lately", "lost"]
    assert [job["name"] for job in astroclip.json("list", "--all")] == ["lately", "long-ago", "lost"]
    for name in ("lately", "lost"):
        (records.folder / f"{name}.json").unlink()
    assert astroclip("list") == f"{more}\n"
    assert "long-ago" in astroclip("status", "long-ago")


def test_a_running_training_in_words() -> None:
    status = JobStatus(JobState.RUNNING, nodes=("n1", "n2"), restarts=2, started="2026-01-02T03:04:05Z")
    run = RunProgress(
        step=1200, steps=25_000, samples_per_second=812.34, eta_s=7500.0, loss=2.25, restarts=1, held_by="n1, process 7"
    )
    job = Job(RECORD, status)
    _, line = table_of([job], {"s3://bucket/runs/align": run}).splitlines()
    assert line.split() == ["align", "local", "17", "running", "3", "1,200/25,000", "812.3", "2", "h", "05", "min"]
    words = job_in_words(job, run)
    for told in (
        "asked for  nodes 2\n",
        "state      running\n",
        "nodes      n1, n2\n",
        "restarts   2 by local, 1 within the run\n",
        "progress   step 1,200 of 25,000 (5%)\n",
        "held by    n1, process 7\n",
        "astroclip jobs logs -f align",
        "astroclip jobs requeue align",
        "astroclip jobs cancel align",
    ):
        assert told in words
    assert "submit" not in words.partition("next")[2]


@pytest.mark.parametrize(
    ("status", "released", "proposed"),
    [
        (JobStatus(JobState.PENDING), True, ["jobs cancel align"]),
        (JobStatus(JobState.PENDING), False, ["jobs submit /jobs/align.yaml nodes=2", "jobs cancel align"]),
        (JobStatus(JobState.REQUEUED), True, ["jobs logs align", "jobs cancel align"]),
        (JobStatus(JobState.FAILED), True, ["jobs logs align", "jobs submit /jobs/align.yaml nodes=2"]),
        (JobStatus(JobState.SUCCEEDED), True, ["jobs logs align", "runs show s3://bucket/runs/align"]),
        (
            JobStatus(JobState.UNKNOWN),
            True,
            ["jobs logs align", "jobs submit /jobs/align.yaml nodes=2", "jobs cancel align"],
        ),
    ],
)
def test_every_state_has_its_next_commands(status: JobStatus, released: bool, proposed: list[str]) -> None:
    job = Job(RECORD.model_copy(update={"released": released}), status)
    words = job_in_words(job, RunProgress(trouble="no answer within 5 s"))
    assert re.findall(r"^  astroclip (.*?) +#", words, re.MULTILINE) == proposed
    assert "run folder  could not be read: no answer within 5 s" in words
    assert "run folder: no answer within 5 s" in table_of(
        [job], {RECORD.run or "": RunProgress(trouble="no answer within 5 s")}
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3599, "1 h 00 min"), (11_100, "3 h 05 min"), (187_000, "2 d 3 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
