"""A real Slurm on made-up hosts of this machine (ops/slurm.py), and what tests ask of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from astroclip_dist.cli import main
from tests.system.conftest import OPS

PATIENCE_S = 420.0


class SlurmCluster:
    """A cluster; the job records of this test session are its own, too.

    Attributes:
        folder: of the cluster, and below ``jobs`` of what its jobs print.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs = folder / "jobs"

    def slurm(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def write_job(self, name: str, text: str) -> Path:
        """A job file, whose launcher is this cluster."""
        path = self.folder / f"{name}.yaml"
        place = {"name": "slurm", "folder": str(self.jobs), "notice": "30 s", "python": sys.executable}
        path.write_text(f"name: {name}\nlauncher: {json.dumps(place)}\n{text}")
        return path

    def id_of(self, name: str) -> str:
        return self.status(name)["id"]

    def status(self, name: str) -> dict[str, Any]:
        """As ``astroclip jobs status`` tells it."""
        [told] = json.loads(astroclip("jobs", "status", name, "--json"))
        return told

    def wait_for(self, name: str, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Until a job's status is as wanted."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds(told := self.status(name)):
            assert time.monotonic() < deadline, f"{told}\n{self.log(name)}\n{self.slurm('squeue')}"
            time.sleep(0.3)
        return told

    def wait_for_state(self, name: str, *states: str) -> dict[str, Any]:
        told = self.wait_for(name, lambda told: told["state"] in (*states, "failed", "cancelled", "succeeded"))
        assert told["state"] in states, f"{told}\n{self.log(name)}"
        return told

    def log(self, name: str) -> str:
        return "\n".join(path.read_text() for path in sorted((self.jobs / name).glob("*.log")))

    def wait_for_log(self, name: str, words: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while words not in self.log(name):
            assert time.monotonic() < deadline, f"no {words!r} in\n{self.log(name)}"
            time.sleep(0.1)

    def start_at_once(self, name: str) -> None:
        """Spare a job that was queued again the wait for its old credential."""
        self.wait_for_state(name, "requeued")
        # Nodes refuse a credential that is dated from the second in which the old one was revoked, and the job fails.
        time.sleep(1)
        self.slurm("scontrol", "update", f"JobId={self.id_of(name)}", "StartTime=now")

    def processes(self, job_id: str, title: str = "") -> list[psutil.Process]:
        """Those of a job, on all nodes, with ``title`` in their command line."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("SLURM_JOB_ID") == job_id and title in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]

    def crash(self, node: str) -> None:
        """SIGKILL a node's first process, and with it all others there."""
        pid = json.loads((self.folder / "daemons.json").read_text())[node]["pid"]
        psutil.Process(pid).send_signal(signal.SIGKILL)


def astroclip(*arguments: str | Path) -> str:
    """What the command prints; its exit code is 0."""
    code, out, error = try_astroclip(*arguments)
    assert code == 0, out + error
    return out


def try_astroclip(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output and error of the ``astroclip`` command, in this process."""
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as error:
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), error.getvalue()


@contextmanager
def small_slurm(nodes: int, *options: str) -> Iterator[SlurmCluster]:
    """A cluster while within; its commands are found first. Skips the tests where it cannot be had."""
    accounting = [option for option in options if option == "--accounting"]
    # Not pytest's own folder: the path of a socket may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    if reason := _fails("install", *accounting) or _fails("start", str(folder), f"--nodes={nodes}", *options):
        _fails("stop", str(folder))
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"no Slurm here: {reason}")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
            patch.setenv("ASTROCLIP_JOBS", str(folder / "records"))
            yield SlurmCluster(folder)
    finally:
        reason = _fails("stop", str(folder))
        shutil.rmtree(folder, ignore_errors=True)
        assert not reason


def _fails(*arguments: str) -> str | None:
    command = [sys.executable, str(OPS / "slurm.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return None if done.returncode == 0 else done.stderr.strip()
