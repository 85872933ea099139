"""A real Ray cluster that takes jobs, started as people start one, and the command with which they use it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.system.conftest import OPS
from tests.system.hosts import Hosts

PATIENCE_S = 300.0
SCRIPT = str(OPS / "ray_cluster.py")


class Desk:
    """A person who uses a cluster: ``astroclip jobs`` with its records, on some host.

    Args:
        folder: of the records and of what is printed.
        within: a command that becomes the one after it, on another host.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], within: Sequence[str] = ()) -> None:
        self.folder = folder
        self.environment = {"ASTROCLIP_JOBS": str(folder / "jobs"), **environment}
        self._within = within

    def jobs(self, *arguments: str | Path, code: int = 0) -> str:
        """What ``astroclip jobs ARGUMENTS`` prints, errors included, when it ends with ``code``."""
        command = self.begin(*arguments)
        output, _ = command.communicate(timeout=PATIENCE_S)
        assert command.returncode == code, output
        return output

    def begin(self, *arguments: str | Path, output: Path | None = None) -> subprocess.Popen[str]:
        """Start ``astroclip jobs ARGUMENTS``; what it prints goes into a file, or is to be read."""
        command = [sys.executable, "-m", "astroclip_dist.cli", "jobs", *map(str, arguments)]
        return subprocess.Popen(
            [*self._within, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if output is None else output.open("w"),
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **self.environment},
        )

    def job(self, name: str) -> dict[str, Any]:
        """What ``astroclip jobs status`` says of a job."""
        [job] = json.loads(self.jobs("status", name, "--json"))
        return job

    def wait_for(self, name: str, state: str) -> dict[str, Any]:
        """Until a job is in a state."""
        deadline = time.monotonic() + PATIENCE_S
        while (job := self.job(name))["state"] != state:
            over = job["state"] in ("succeeded", "failed", "cancelled")
            assert not over, f"{job}\n{self.jobs('logs', name)}"
            assert time.monotonic() < deadline, f"{job}\n{self.jobs('logs', name)}"
            time.sleep(1)
        return job


class Follower:
    """``astroclip jobs logs -f``, running."""

    def __init__(self, desk: Desk, name: str) -> None:
        self._file = desk.folder / f"{name}-{time.monotonic_ns()}.log"
        self.command = desk.begin("logs", "-f", name, output=self._file)

    @property
    def text(self) -> str:
        return self._file.read_text()

    def wait_for(self, pattern: str) -> None:
        """Until what was followed so far has a match."""
        deadline = time.monotonic() + PATIENCE_S
        while not re.search(pattern, self.text):
            assert self.command.poll() is None, f"ended without {pattern!r}:\n{self.text}"
            assert time.monotonic() < deadline, f"no {pattern!r}:\n{self.text}"
            time.sleep(0.1)

    def finish(self) -> str:
        """What it printed, when the job is over."""
        assert self.command.wait(PATIENCE_S) == 0, self.text
        return self.text


class RayOnHosts:
    """Ray on hosts: a head without room for workers, and nodes with room for one each."""

    def __init__(self, hosts: Hosts, folder: Path, environment: Mapping[str, str]) -> None:
        self.hosts, self._folder, self._environment = hosts, folder, {**environment, "GLOO_SOCKET_IFNAME": "eth0"}
        self.address = f"http://{hosts.addresses['head']}:8265"
        self.token = folder / "head/token"

    def start_head(self) -> str:
        """Returns what the script prints."""
        here = self.hosts.addresses["head"]
        return self._run(
            "head", "start", self._folder / "head", "--host", here, "--dashboard-host", here, "--cpus", "0"
        )

    def join(self, name: str) -> str:
        """Returns what the script prints."""
        head = f"{self.hosts.addresses['head']}:6379"
        where = ["--head", head, "--token", str(self.token), "--host", self.hosts.addresses[name]]
        return self._run(name, "join", self._folder / name, *where, "--cpus", "1")

    def hold_workers(self, name: str) -> Callable[[], None]:
        """Stop a host's workers, so that what is to happen meanwhile does; returns what lets them go on."""
        workers = self.hosts.processes(name, "RayTrainWorker")
        assert workers
        for worker in workers:
            worker.send_signal(signal.SIGSTOP)

        def go_on() -> None:
            for worker in workers:
                worker.send_signal(signal.SIGCONT)

        return go_on

    def command(self) -> psutil.Process:
        """The ``astroclip train`` of the job that runs."""
        [found] = [
            process
            for process in self.hosts.processes("head", "astroclip_dist.cli")
            if process.cmdline()[3:4] == ["train"]
        ]
        return found

    def _run(self, name: str, *arguments: str | Path) -> str:
        done = subprocess.run(
            [*self.hosts.within(name), sys.executable, SCRIPT, *map(str, arguments)],
            env={**os.environ, **self._environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
