"""Ray on one node of a job; ``python -m launchers.slurm.ray_node ADDRESS`` on all nodes but the first, until its input
ends or a SIGTERM comes."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from types import TracebackType
from typing import IO, Self

STARTED = "Ray runs on"
_START_S = 120.0
_END_S = 5.0
# Ray gives its own processes 30 s to come up, which are too few on a node that is busy.
_TRIES = 3
# Each by chance, so that jobs of one user can share a node.
_PORTS = (
    *("--node-manager-port=0", "--object-manager-port=0", "--min-worker-port=0", "--max-worker-port=0"),
    "--dashboard-agent-listen-port=0",
)


class RayNodeError(Exception):
    """Ray cannot be started; the message is its own."""


class RayNode:
    """Ray's processes on this machine, while within.

    Args:
        settings: ``--head --port=N``, or ``--address=HOST:PORT``.
        address: of this machine, for the other nodes.
        slots: how many workers have room.
        gpus: of this node.
    """

    def __init__(self, settings: list[str], address: str, slots: int, gpus: int) -> None:
        node = [f"--node-ip-address={address}", f"--num-cpus={slots}"]
        gpu = [f"--num-gpus={gpus}"] if gpus else []
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        self._command = [*start, *_PORTS, *node, *gpu, *settings]
        self._process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False

    def __enter__(self) -> Self:
        for _ in range(_TRIES):
            self._start()
            if self._runs:
                return self
            self._end()
        raise RayNodeError("Ray does not start:\n" + "".join(self._lines[-30:]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def wait(self) -> int:
        """Until Ray ends; its exit code."""
        assert self._process is not None
        return self._process.wait()

    @property
    def _runs(self) -> bool:
        return any("Ray runtime started." in line for line in self._lines)

    def _start(self) -> None:
        """Return when Ray runs, or cannot."""
        self._lines, self._ended = [], False
        # Not the job's folder: the path of a socket may have 107 characters. Ray lets everybody write into its own one.
        self._folder = tempfile.mkdtemp(prefix=f"astroclip-{os.environ['SLURM_JOB_ID']}-", dir="/tmp")
        command = [*self._command, f"--temp-dir={self._folder}/ray"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL
        )
        reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        reader.start()
        with self._news:
            self._news.wait_for(lambda: self._runs or self._ended, _START_S)

    def _read(self, output: IO[str]) -> None:
        for line in output:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _end(self) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def address_towards(host: str) -> str:
    """The address of this machine that a host of the same network sees. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return str(probe.getsockname()[0])


def _follow_the_input() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", metavar="HOST:PORT", help="of the head")
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--gpus", type=int, default=0)
    options = parser.parse_args()
    own = address_towards(options.address.rpartition(":")[0])
    # The default action would leave Ray's processes and their folder behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    threading.Thread(target=_follow_the_input, daemon=True).start()
    try:
        with RayNode([f"--address={options.address}"], own, options.slots, options.gpus) as node:
            print(f"{STARTED} {os.environ['SLURMD_NODENAME']} ({own})", flush=True)
            return node.wait()
    except RayNodeError as error:
        print(error, file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
