"""Start and stop one server as a process of its own, with a log, a state file and a check who owns the port."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import psutil

HOST = "127.0.0.1"
# Waits for a line, and then becomes the command; without one it ends.
_WAITS = ("/bin/sh", "-c", 'read -r line && exec "$@" </dev/null', "waits")


class ServerError(Exception):
    """The server cannot be started or stopped; the message says why."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def write_private(path: Path, text: str) -> None:
    """A file that only its owner may read, complete or not there."""
    aside = path.with_name(path.name + ".new")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    aside.replace(path)


def claim(folder: Path, name: str) -> IO[bytes]:
    """Nobody else starts ``name`` in a folder until the file that this returns is closed, or this process ends.

    Raises:
        ServerError: somebody else does.
    """
    file = os.fdopen(os.open(folder / f"{name}.lock", os.O_WRONLY | os.O_CREAT, 0o600), "wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ServerError(f"another process starts {name} in {folder}: wait for it, or end it") from None
    return file


def start_recorded(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    record: Callable[[dict[str, Any]], None],
    umask: int = -1,
) -> subprocess.Popen[bytes]:
    """Start a process in the background, in the folder of its log, once it is written down how to find it again.

    Whoever starts it may be killed at any moment: nothing runs that nobody knows.
    """
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        child = subprocess.Popen(
            [*_WAITS, *command],
            cwd=log.parent,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
            umask=umask,
        )
    record({"pid": child.pid, "started": psutil.Process(child.pid).create_time()})
    assert child.stdin is not None
    child.stdin.write(b"go\n")
    child.stdin.close()
    return child


def recorded_process(record: Mapping[str, Any]) -> psutil.Process | None:
    """The process of a record, if it runs. The start time tells it from a stranger that got its process id later."""
    try:
        process = psutil.Process(record["pid"])
        return process if process.create_time() == record["started"] and lives(process) else None
    except (KeyError, psutil.NoSuchProcess):
        return None


def lives(process: psutil.Process) -> bool:
    """Whether it runs. One that has ended may be kept as a zombie for seconds by whoever takes in orphans."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class ServerProcess:
    """A server that keeps its log, state and data in one folder.

    Args:
        name: names ``NAME.json`` (process id, start time, details for who connects) and ``NAME.log`` in the folder.
        folder: everything of this server lies here.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder.resolve()
        self.log = self.folder / f"{name}.log"
        self._state = self.folder / f"{name}.json"
        self._claim: IO[bytes] | None = None

    def state(self) -> dict[str, Any]:
        """What the last start wrote, or nothing."""
        return json.loads(self._state.read_text()) if self._state.exists() else {}

    def process(self) -> psutil.Process | None:
        """The running server."""
        return recorded_process(self.state())

    def claim(self) -> None:
        """Make the folder where it is not there; what is done in it from now on is this process's alone.

        Raises:
            ServerError: the server runs already, or somebody else starts it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim = self._claim or claim(self.folder, self.name)
        if self.process():
            raise ServerError(f"{self.name} runs already in {self.folder}: stop it first")

    def start(
        self,
        command: Sequence[str],
        port: int,
        answers: Callable[[], bool],
        details: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
        deadline_s: float = 90.0,
        private: bool = False,
    ) -> None:
        """Start in the background and return when the server answers on a port that it owns.

        Args:
            private: what the server keeps in files is behind its credentials, so nobody else may read the files.

        Raises:
            ServerError: it runs already, it ended, or it did not answer in time (the log's end is in the message).
        """
        self.claim()
        child = start_recorded(
            command,
            self.log,
            environment or {},
            lambda record: write_private(self._state, json.dumps({**record, **details}, indent=1)),
            umask=0o077 if private else -1,
        )
        process = psutil.Process(child.pid)
        give_up = time.monotonic() + deadline_s
        while not (_owns_port(process, port) and answers()):
            if child.poll() is not None or time.monotonic() > give_up:
                why = "ended at once" if child.poll() is not None else f"did not answer within {deadline_s:.0f} s"
                self.stop(grace_s=0)
                raise ServerError(f"{self.name} {why}; end of {self.log}:\n{self._log_end()}")
            time.sleep(0.1)

    def stop(self, grace_s: float = 10.0) -> bool:
        """End the server and its children: politely, and after ``grace_s`` seconds by force. False: it did not run."""
        process = self.process()
        if process is None:
            return False
        try:
            if grace_s > 0:
                os.killpg(process.pid, signal.SIGTERM)
                psutil.wait_procs([process], timeout=grace_s)
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return True
        psutil.wait_procs([process], timeout=10)
        return True

    def wait(self) -> None:
        """Stay until the server ends; SIGINT or SIGTERM to this process ends the server first."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            while self.process():
                time.sleep(0.5)
            raise ServerError(f"{self.name} ended; end of {self.log}:\n{self._log_end()}")
        except KeyboardInterrupt:
            pass
        finally:
            self.stop()

    def _log_end(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def _owns_port(process: psutil.Process, port: int) -> bool:
    # An older server in its slow shutdown may still answer on the port: only our own listener counts.
    try:
        family = [process, *process.children(recursive=True)]
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for member in family
            for connection in member.net_connections("tcp")
        )
    except psutil.NoSuchProcess:
        return False
