"""The daemons of a small Slurm: started in the background, ended each by its own process id."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from server_process import ServerError, lives, recorded_process, start_recorded, write_private


class Daemons:
    """What runs of a cluster, in the order in which it was started.

    Args:
        folder: of the cluster. ``daemons.json`` in it keeps process ids, ``log/NAME.out`` what a daemon prints.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._state = folder, folder / "daemons.json"

    def process(self, name: str) -> psutil.Process | None:
        """The running daemon."""
        return recorded_process(self._read().get(name, {}))

    def start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        end_with: signal.Signals = signal.SIGTERM,
    ) -> None:
        """Start one that does not run, in the background; ``stop`` ends it with a signal."""
        if self.process(name):
            return

        def record(told: dict[str, Any]) -> None:
            state = {other: known for other, known in self._read().items() if other != name}
            state[name] = {**told, "end_with": end_with.name}
            write_private(self._state, json.dumps(state, indent=1))

        start_recorded(command, self._folder / "log" / f"{name}.out", environment, record)

    def running(self) -> dict[str, psutil.Process]:
        """Those that run, in the order of their start."""
        return {name: process for name in self._read() if (process := self.process(name))}

    def check(self) -> None:
        """
        Raises:
            ServerError: a daemon has ended.
        """
        for name in self._read():
            if self.process(name) is None:
                log = (self._folder / "log" / f"{name}.out").read_text(errors="replace").splitlines()
                raise ServerError(f"{name} ended:\n" + "\n".join(log[-15:]))

    def stop(self, grace_s: float = 10.0) -> bool:
        """End all, the last one first. False: none ran."""
        told, running = self._read(), self.running()
        for name, process in reversed(running.items()):
            # What is left of it, or runs in its process namespace, ends with it.
            family = [process, *_children(process)]
            _send(process, signal.Signals[told[name]["end_with"]])
            for one in _wait(family, grace_s):
                _send(one, signal.SIGKILL)
            _wait(family, grace_s)
        self._state.unlink(missing_ok=True)
        return bool(running)

    def _read(self) -> dict[str, Any]:
        return json.loads(self._state.read_text()) if self._state.exists() else {}


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _wait(processes: Sequence[psutil.Process], deadline_s: float) -> list[psutil.Process]:
    """Those that still live after a while."""
    deadline = time.monotonic() + deadline_s
    while (left := [process for process in processes if lives(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
