"""Starts of the servers in ops/ that are killed, or that meet another one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.system.conftest import OPS, RealObjectStore
from tests.until import until

# The starter is killed before it has written down what it starts.
_KILLED = """
import os, signal, sys
from pathlib import Path
from server_process import start_recorded
command = ["/bin/sh", "-c", "echo begun > begun"]
start_recorded(command, Path(sys.argv[1]) / "log", {}, lambda record: os.kill(os.getpid(), signal.SIGKILL))
"""


def run_code(code: str, folder: Path) -> int:
    """Exit code of a program that uses what the scripts share."""
    environment = {**os.environ, "PYTHONPATH": str(OPS)}
    return subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, timeout=60).returncode


def refused(script: str, *arguments: str | Path) -> str:
    """What a script says that fails."""
    command = [sys.executable, str(OPS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    return done.stderr


def test_of_a_start_that_is_killed_nothing_runs_that_is_not_written_down(tmp_path: Path) -> None:
    assert run_code(_KILLED, tmp_path) == -signal.SIGKILL
    until(lambda: not [one for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(tmp_path)])
    assert not (tmp_path / "begun").exists()


def test_a_second_start_leaves_alone_what_clients_source(object_store: RealObjectStore) -> None:
    before = {path: path.read_text() for path in object_store.folder.glob("*.env")}
    assert "runs already" in refused("object_store.py", "start", object_store.folder, "--port", "1")
    assert {path: path.read_text() for path in object_store.folder.glob("*.env")} == before
