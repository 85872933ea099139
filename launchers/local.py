"""Workers as processes of this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time

from astroclip_dist.config import RunConfig

_POLL_S = 0.1
# The others lose their connection to one that failed, and end by themselves with what they know of it.
_FAREWELL_S = 5.0
_GRACE_S = 10.0
log = logging.getLogger(__name__)


class LocalLauncher:
    """Starts ``workers`` processes, restarts all of them when one dies, stops them when it is stopped itself."""

    def run(self, config: RunConfig) -> int:
        """Train to the end.

        Returns:
            The exit code of the command: 0, 1, 2.
        """
        for attempt in range(config.health.max_restarts + 1):
            codes = self._attempt(config)
            if not any(codes):
                return 0
            if any(code in (1, 2) for code in codes):
                return max(code for code in codes if code in (1, 2))
            left = config.health.max_restarts - attempt
            log.error("a worker died (exit codes %s); %s", codes, f"{left} restarts left" if left else "giving up")
        return 1

    def _attempt(self, config: RunConfig) -> list[int]:
        """Run all workers until all have ended well or one has not; then end the others.

        Returns:
            Exit codes of those that ended by themselves; negative: died of that signal.
        """
        port = _free_port()
        workers: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(config.workers):
                workers.append(self._start(config, rank, port))
            while not any(ended := _ended(workers)) and len(ended) < len(workers):
                time.sleep(_POLL_S)
            deadline = time.monotonic() + _FAREWELL_S
            while len(ended := _ended(workers)) < len(workers) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            return ended
        finally:
            _stop(workers)

    def _start(self, config: RunConfig, rank: int, port: int) -> subprocess.Popen[bytes]:
        threads = max(1, (os.cpu_count() or 1) // config.workers)
        environment = {
            "OMP_NUM_THREADS": str(threads),
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(config.workers),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        worker = subprocess.Popen(
            [sys.executable, "-m", "launchers.worker"],
            stdin=subprocess.PIPE,
            env=environment,
            # Ctrl-C in a terminal reaches the launcher alone, which then stops the workers.
            start_new_session=True,
        )
        assert worker.stdin is not None
        worker.stdin.write(config.model_dump_json().encode() + b"\n")
        worker.stdin.flush()
        return worker


def _ended(workers: list[subprocess.Popen[bytes]]) -> list[int]:
    """Exit codes of those that have ended."""
    return [code for code in (worker.poll() for worker in workers) if code is not None]


def _stop(workers: list[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    for worker in workers:
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        if worker.stdin is not None:
            worker.stdin.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
