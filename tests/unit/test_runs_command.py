"""``astroclip runs``: what people are told of run folders, and what is done to them."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from astroclip_dist.cli import main
from astroclip_dist.config import RunConfig, parse_config
from astroclip_dist.config.engine import DdpEngine
from astroclip_dist.config.run import Checkpoint, Optimizer
from astroclip_dist.data.ordering.order import Cursor
from astroclip_dist.models.initial import InitialValues
from astroclip_dist.parallel.engines import Engine
from astroclip_dist.parallel.engines.ddp import Ddp
from astroclip_dist.parallel.process_group import join, leave
from astroclip_dist.runs.diary import diary, in_words
from astroclip_dist.runs.wording import ago, amount, many
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import Progress, complete_checkpoints, save
from astroclip_dist.train.event_log import EVENTS_FILE, EventLog
from astroclip_dist.train.holding import hold
from astroclip_dist.train.run_folder import register

STARTED: dict[str, Any] = {"event": "started", "step": 0, "steps": 40, "world_size": 2}


@pytest.fixture(autouse=True)
def quiet_root_logger() -> Iterator[None]:
    """``main`` sends the log to standard error of the test that called it first."""
    handlers = list(logging.root.handlers)
    yield
    logging.root.handlers[:] = handlers


def config(run: Path) -> RunConfig:
    return parse_config(
        f"{{data: /survey, run: {run}, length: 40 steps, workers: 2, batch: {{global_size: 16, lanes: 4}}, "
        f"optimizer: {{lr: 1e-3}}, checkpoint: {{keep_last: 2, keep_every: 20 steps}}, "
        f"tracking: {{uri: 'sqlite:///{run.parent}/mlflow.db'}}}}",
        "test",
    )


def make_run(run: Path, *events: dict[str, Any]) -> Store:
    store = Store(run)
    register(store, config(run))
    with EventLog(store) as log:
        for event in events:
            log.write(**event)
    return store


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    ranks = join("cpu", 60.0)
    made = nn.Linear(4, 4)
    yield Ddp(DdpEngine(), ranks, made, Optimizer(lr=1e-2), InitialValues(made, seed=0))
    leave(ranks)


@pytest.fixture
def saved_run(engine: Engine, tmp_path: Path) -> Store:
    """A run that was killed at step 33, with checkpoints at steps 10, 20 and 30 and an interrupted save."""
    events = [{"event": "saved", "step": step, "checkpoint": f"checkpoints/step-{step:09d}"} for step in (10, 20, 30)]
    store = make_run(tmp_path / "runs" / "killed", STARTED, *events)
    with torch.no_grad():
        for step in (10, 20, 30):
            save(store, engine, Progress(step, Cursor(0, step)), keep_last=9)
    store.put("checkpoints/step-000000040/rank-00000.safetensors", b"half")
    return store


def ask(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    code = main(["runs", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out or said.err


def ask_json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    return json.loads(ask(capsys, *arguments, "--json")[1])


def test_list_says_of_every_run_how_it_stands(
    saved_run: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs"
    make_run(folder / "deep" / "done", STARTED, {"event": "finished", "step": 40})
    make_run(folder / "left", STARTED, {"event": "preempted", "step": 7, "reason": "SIGTERM"})
    make_run(folder / "bad", STARTED, {"event": "failed", "error": "no space\nleft"})
    make_run(folder / "lost", STARTED, {"event": "saved", "step": 10, "checkpoint": "gone"})
    held = make_run(folder / "held", STARTED)
    unreadable = make_run(folder / "unreadable", STARTED)
    unreadable.put("run.yaml", b"config: {")
    # No runs: a configuration beside weights, and one among MLflow's artifacts.
    Store(folder).put("deep/done/weights/run.yaml", b"x")
    Store(folder).put("mlflow-artifacts/1/artifacts/run.yaml", b"x")
    Store(folder).put("left/tracking/00001.jsonl", b"{}")
    with hold(held, "local", lambda error: None):
        runs = {run["name"]: run for run in ask_json(capsys, "list", folder)}
        code, text = ask(capsys, "list", folder)
    assert {name: run["state"] for name, run in runs.items()} == {
        "bad": "failed",
        "deep/done": "finished",
        "held": "running",
        "killed": "waiting to be resumed",
        "left": "waiting to be resumed",
        "lost": "damaged",
        "unreadable": "damaged",
    }
    assert (runs["killed"]["step"], runs["killed"]["steps"]) == (30, 40)
    assert f"process {os.getpid()}" in runs["held"]["holder"]
    assert "SIGTERM" in runs["left"]["why"]
    assert "none is complete" in runs["lost"]["why"]
    assert code == 0
    lines = text.splitlines()
    assert len(lines) == 8
    assert re.fullmatch(r"bad +clip +failed +0/40 +(just now|\d+ s ago) +failed: no space", lines[1])
    assert "waiting to be resumed, 1 batch unsent  7/40" in text


def test_list_takes_a_single_run_too(saved_run: Store, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = ask_json(capsys, "list", saved_run.url)
    assert (run["name"], run["state"]) == ("killed", "waiting to be resumed")


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("list", 1, "no run there or below"),
        ("show", 2, "No run there (no run.yaml)"),
        ("verify", 2, "No run there (no run.yaml)"),
        ("prune", 2, "No run there (no run.yaml)"),
        ("sync", 2, "No run there (no run.yaml)"),
    ],
)
def test_where_there_is_no_run(
    command: str, code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, said = ask(capsys, command, tmp_path / "nothing")
    assert found == code
    assert said.startswith("error: ")
    assert message in said
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("content", [b"config: {", b"", b"made_with: {}", b"\xff"])
def test_a_damaged_configuration_is_named(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", STARTED)
    run.put("run.yaml", content)
    for command in ("show", "verify", "prune", "sync"):
        code, said = ask(capsys, command, run.url)
        assert (code, said.startswith(f"error: {run.locate('run.yaml')}: damaged")) == (1, True), said


def test_show_tells_what_is_there_and_what_happened(saved_run: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with EventLog(saved_run) as log:
        log.write("restarting", cause="rank 1 was killed (SIGKILL)", attempt=1, of=3)
        log.write("resumed", step=30, steps=40, world_size=1)
        log.write("invented later", colour="blue")
    code, text = ask(capsys, "show", saved_run.url)
    assert code == 0
    for words in (
        "clip, 40 steps, 16 samples a step, lr 0.001, seed 0",
        "state    waiting to be resumed: ended without a word (killed?)",
        "reached  step 30 of 40 (75%)",
        "held by  nobody",
        "not reached yet",
        "saved 3 times, last step 30",
        "restarted (restart 1 of 3): rank 1 was killed (SIGKILL)",
        "went on at step 30 of 40 on 1 worker\n",
        "invented later: colour blue",
    ):
        assert words in text
    assert [line.split()[0] for line in text.splitlines() if line.startswith("  step-")] == [
        "step-000000010",
        "step-000000020",
        "step-000000030",
        "step-000000040",
    ]
    assert sum(line.endswith("complete") for line in text.splitlines()) == 3
    assert text.index("restarted") < text.index("went on")
    shown = ask_json(capsys, "show", saved_run.url)
    assert shown["config"]["length"] == "40 steps"
    assert [checkpoint["step"] for checkpoint in shown["checkpoints"]] == [10, 20, 30, 40]
    assert len(shown["events"]) == 7


def test_list_and_show_do_without_torch(saved_run: Store) -> None:
    program = (
        "import sys; from astroclip_dist.cli import main; codes = [main(['runs', c, sys.argv[1]]) for c in "
        "('list', 'show')]; sys.exit(any(codes) or 'torch' in sys.modules or 'mlflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, saved_run.url], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_verify_finds_a_flipped_bit_and_says_what_would_be_used(
    saved_run: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = ask(capsys, "verify", saved_run.url)
    assert code == 0
    assert "the run would go on from step 30" in text
    assert "step-000000040  incomplete, ignored" in text
    path = saved_run.local_path("checkpoints/step-000000030/rank-00000.safetensors")
    assert path is not None
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    code, text = ask(capsys, "verify", saved_run.url)
    assert code == 1
    assert "DAMAGED" in text
    assert "crc32 differs" in text
    assert "the run would go on from step 20" in text
    report = ask_json(capsys, "verify", saved_run.url)
    assert report["sound"] is False
    assert report["resumes_from"] == "checkpoints/step-000000020"
    assert [bool(checkpoint["faults"]) for checkpoint in report["checkpoints"]] == [False, False, True, False]


def test_verify_of_a_run_whose_checkpoints_are_gone(
    saved_run: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_run.delete([entry.name for entry in saved_run.list("checkpoints")])
    code, text = ask(capsys, "verify", saved_run.url)
    assert code == 1
    assert "the run cannot go on" in text
    fresh = make_run(tmp_path / "fresh", STARTED)
    assert ask(capsys, "verify", fresh.url) == (0, "no checkpoints: the run would begin anew\n")


def test_prune_keeps_what_the_run_keeps(saved_run: Store, capsys: pytest.CaptureFixture[str]) -> None:
    before = [entry.name for entry in saved_run.list()]
    assert ask_json(capsys, "prune", saved_run.url, "--dry-run") == {
        "removed": [],
        "surplus": ["checkpoints/step-000000010"],
    }
    assert [entry.name for entry in saved_run.list()] == before
    code, text = ask(capsys, "prune", saved_run.url)
    assert (code, text) == (0, "removed checkpoints/step-000000010\n")
    # Step 20 is a multiple of keep_every.
    assert ask(capsys, "prune", saved_run.url, "--keep-last", "1") == (0, "nothing to remove\n")
    assert complete_checkpoints(saved_run) == ["checkpoints/step-000000020", "checkpoints/step-000000030"]


def test_prune_goes_by_what_the_newest_start_asked_for(saved_run: Store, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved_run.local_path("")
    assert path is not None
    first = config(path)
    register(saved_run, first.model_copy(update={"checkpoint": Checkpoint(keep_last=3)}))
    assert ask(capsys, "prune", saved_run.url) == (0, "nothing to remove\n")
    register(saved_run, first.model_copy(update={"checkpoint": Checkpoint(keep_last=1)}))
    assert ask(capsys, "prune", saved_run.url) == (
        0,
        "removed checkpoints/step-000000010\nremoved checkpoints/step-000000020\n",
    )


def test_prune_refuses_to_leave_nothing_or_to_touch_a_run_that_goes_on(
    saved_run: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = ask(capsys, "prune", saved_run.url, "--keep-last", "0")
    assert (code, "Keep one at least" in text) == (2, True)
    with hold(saved_run, "local", lambda error: None):
        for command in ("prune", "sync"):
            code, text = ask(capsys, command, saved_run.url)
            assert (code, f"process {os.getpid()}" in text) == (1, True), text
    assert len(complete_checkpoints(saved_run)) == 3


def test_half_a_line_of_events_hides_no_other(saved_run: Store, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved_run.local_path(EVENTS_FILE)
    assert path is not None
    path.write_bytes(path.read_bytes() + b'{"event": "sav')
    assert "saved 3 times" in ask(capsys, "show", saved_run.url)[1]


def test_saves_in_a_row_are_one_entry() -> None:
    kinds = ["started", "saved", "saved", "failed", "saved"]
    events = [
        {"event": kind, "time": f"2026-11-22T11:00:{number:02d}.000Z", "step": number, "world_size": 1, "error": "e"}
        for number, kind in enumerate(kinds)
    ]
    assert diary(events) == [
        ("2026-11-22 11:00:00", "started at step 0 on 1 worker"),
        ("2026-11-22 11:00:02", "saved 2 times, last step 2"),
        ("2026-11-22 11:00:03", "failed: e"),
        ("2026-11-22 11:00:04", "saved step 4"),
    ]


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            {"event": "skipped", "step": 7, "kind": "spike", "loss": "9.0", "gradient_norm": "nan", "keys": []},
            "skipped step 7 (spike): loss 9.0, gradient norm nan; no sample is to blame",
        ),
        ({"event": "quarantined", "step": 7, "samples": 1, "what": ["why"]}, "put 1 sample aside at step 7: why"),
        ({"event": "preempted", "step": 7, "reason": "SIGTERM"}, "left at step 7, saved: SIGTERM"),
        (
            {"event": "unpruned", "step": 7, "error": "refused", "in_a_row": 2},
            "could not remove old checkpoints after step 7, 2 times in a row: refused",
        ),
        ({"event": "hung", "ranks": [1], "message": "rank 1 hangs in backward"}, "rank 1 hangs in backward"),
        ({"event": "restarting", "cause": "c", "world_size": 2}, "restarted on 2 workers: c"),
        ({"event": "preempted", "step": 7, "reason": "x", "saved": 5}, "left at step 7, saved up to step 5: x"),
        ({"event": "preempted"}, "preempted"),
        ({}, "?"),
    ],
)
def test_events_in_words(event: dict[str, Any], words: str) -> None:
    assert in_words(event) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-7200, "just now"), (0.5, "just now"), (59, "59 s ago"), (60, "1 min ago"), (7300, "2 h ago"), (9e5, "10 d ago")],
)
def test_ages(seconds: float, words: str) -> None:
    now = datetime(2026, 11, 22, tzinfo=UTC)
    assert ago((now - timedelta(seconds=seconds)).isoformat(), now) == words


def test_amounts() -> None:
    assert [amount(size) for size in (0, 999, 1500, 2.5e9, 3e15)] == ["0 B", "999 B", "1.5 kB", "2.5 GB", "3e+03 TB"]
    assert [many(1, "batch"), many(2, "batch"), many(1200, "worker")] == ["1 batch", "2 batches", "1,200 workers"]
