"""Starts of the servers in ops/ that are killed, or that meet another one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from ops.network_hosts import why_no_hosts
from tests.system.conftest import OPS, RealObjectStore, run_ops
from tests.until import until

# The starter is killed before it has written down what it starts.
_KILLED = """
import os, signal, sys
from pathlib import Path
from server_process import start_recorded
command = ["/bin/sh", "-c", "echo begun > begun"]
start_recorded(command, Path(sys.argv[1]) / "log", {}, lambda record: os.kill(os.getpid(), signal.SIGKILL))
"""
# As a start leaves it that is killed after the first step of the first node.
_HALF_MADE = """
import sys
from pathlib import Path
from network_hosts import ip
from slurm_hosts import SlurmHosts
ip("netns", "add", SlurmHosts(Path(sys.argv[1])).namespace("n1"))
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


@pytest.mark.slow
@pytest.mark.skipif(bool(why_no_hosts()), reason=str(why_no_hosts()))
def test_a_small_slurm_starts_where_a_start_was_killed_and_never_twice() -> None:
    run_ops("slurm.py", "install")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    try:
        assert run_code(_HALF_MADE, folder) == 0
        run_ops("slurm.py", "start", folder, "--nodes=1")
        assert "stop it first" in refused("slurm.py", "start", folder, "--nodes=2")
        run_ops("slurm.py", "start", folder, "--nodes=1")
    finally:
        run_ops("slurm.py", "stop", folder)
        shutil.rmtree(folder)
