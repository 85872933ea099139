"""Time from a SIGKILL of a worker to the first new step, over that of a bare restart.

A training with two processes runs under each launcher, on one machine; again and again one of its workers is killed,
and what the new ones do until their first step is stamped (``recovery_stamps``). A phase ends when the later of the
two ranks is through. The bare restart is the limit: two processes are started that import torch, join, and make one
step, with nobody who has to notice a death. It takes turns with the recoveries, while the training rests. The ratio
is that of the local launcher.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.benchmarks.result import Result, Size, interleaved, paired_ratio, print_result, size_asked_for
from tests.random_survey import write_random_survey
from tests.system.training_runs import CONFIG, Command, write_config

STAMPS = Path(__file__).with_name("recovery_stamps")
REPEATS: dict[Size, int] = {"small": 1, "default": 5, "large": 10}
LAUNCHERS = ("local", "ray")
PATIENCE_S = 180.0
# What ends each phase, in the order in which it comes, and what the time until then is spent on.
PHASES = {
    "python runs": "noticed, the others ended, processes started",
    "torch imported": "import torch, and before it what the launcher needs",
    "training begins": "process group, where the launcher makes it",
    "training imported": "import the rest of the training",
    "joined": "join",
    "model made": "dataset opened, model made",
    "checkpoint loaded": "checkpoint found, loaded, checked",
    "journal open": "events, MLflow",
    "first batch": "first batch",
    "first step": "first step",
}


@dataclass(frozen=True)
class Worker:
    """Attributes: reached: when, by the monotonic clock, it came to the end of each phase."""

    pid: int
    reached: dict[str, float]


class KilledTraining:
    """A training under a launcher, whose worker of rank 1 can be killed."""

    def __init__(self, folder: Path, data: str, launcher: str) -> None:
        self._stamps, self._run = folder / "stamps", folder / "run"
        self._stamps.mkdir(parents=True)
        text = CONFIG.replace("30 steps", "1000000 steps") + "health: {max_restarts: 100}\n"
        config = write_config(folder, data, str(self._run), text)
        path = os.pathsep.join(filter(None, (str(STAMPS), os.environ.get("PYTHONPATH"))))
        environment = {"PYTHONPATH": path, "ASTROCLIP_STAMPS": str(self._stamps)}
        self._command = Command(config, f"launcher={launcher}", environment=environment)
        self._workers = self._wait_for_workers({})
        self.phases: list[dict[str, float]] = []

    def recover(self) -> float:
        """Seconds from the kill to the first step after it; ``phases`` gets what they were spent on."""
        # Some steps and saves, so that there is something to load.
        saved = [self._checkpoint()]
        while len(saved) < 2 or saved[0] == saved[-1]:
            time.sleep(0.1)
            saved.append(self._checkpoint())
        killed = time.monotonic()
        os.kill(self._workers[1].pid, signal.SIGKILL)
        self._workers = self._wait_for_workers(self._workers)
        ends = [killed]
        for phase in PHASES:
            # Ray keeps processes in stock: such a one ran before.
            ends.append(max(ends[-1], *(worker.reached[phase] for worker in self._workers.values())))
        self.phases.append(dict(zip(PHASES, (end - begin for begin, end in pairwise(ends)), strict=True)))
        return ends[-1] - killed

    def bare_restart(self) -> float:
        """Seconds of a bare restart, while this training rests."""
        for worker in self._workers.values():
            os.kill(worker.pid, signal.SIGSTOP)
        try:
            return bare_restart()
        finally:
            for worker in self._workers.values():
                os.kill(worker.pid, signal.SIGCONT)

    def close(self) -> None:
        self._command.process.send_signal(signal.SIGINT)
        self._command.finish()

    def _checkpoint(self) -> str:
        latest = self._run / "checkpoints" / "latest"
        return latest.read_text() if latest.exists() else ""

    def _wait_for_workers(self, old: dict[int, Worker]) -> dict[int, Worker]:
        """Both ranks of the next start, when both have done a step."""
        before = {worker.pid for worker in old.values()}
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up and self._command.process.poll() is None:
            found: dict[int, Worker] = {}
            for path in self._stamps.glob("*.json"):
                told: dict[str, Any] = json.loads(path.read_text())
                if "first step" in told["reached"] and int(path.stem) not in before:
                    found[told["rank"]] = Worker(int(path.stem), told["reached"])
            if len(found) == 2:
                for path in self._stamps.glob("*.json"):
                    path.unlink()
                return found
            time.sleep(0.02)
        raise RuntimeError(f"no new workers:\n{self._command.output[-8000:]}")


def bare_restart() -> float:
    """Seconds from the start of two processes to their first step."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.monotonic()
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.bare_restart"],
            env={
                "OMP_NUM_THREADS": "1",
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "CUDA_VISIBLE_DEVICES": "",
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    return max(float(worker.communicate(timeout=PATIENCE_S)[0]) for worker in workers) - began


def main() -> None:
    repeats = REPEATS[size_asked_for(__doc__)]
    times: dict[str, dict[str, list[float]]] = {}
    phases: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="astroclip-recovery-time-") as folder:
        write_random_survey(f"{folder}/data", 100)
        for launcher in LAUNCHERS:
            training = KilledTraining(Path(folder, launcher), f"{folder}/data", launcher)
            try:
                times[launcher] = interleaved({"ours": training.recover, "bare": training.bare_restart}, repeats)
            finally:
                training.close()
            phases[launcher] = training.phases[1:]
    rows: list[list[object]] = []
    for phase, what in PHASES.items():
        rows.append([what, *(statistics.median(found[phase] for found in phases[name]) for name in LAUNCHERS)])
    ratios = {name: paired_ratio(found["ours"], found["bare"]) for name, found in times.items()}
    rows.append(["in all", *(statistics.median(times[name]["ours"]) for name in LAUNCHERS)])
    rows.append(["a bare restart", *(statistics.median(times[name]["bare"]) for name in LAUNCHERS)])
    rows.append(["ratio", *ratios.values()])
    print_result(
        Result("recovery_time", ratios["local"], "<= 2"),
        f"seconds from the SIGKILL of a worker to the first new step, two processes; medians of {repeats}",
        ["", *LAUNCHERS],
        rows,
    )


if __name__ == "__main__":
    main()
