"""Trainings as people start them, with the ``astroclip`` command, and what is left of them afterwards."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import read_checkpoint_manifest, read_tensors, resolve_checkpoint
from astroclip_dist.train.event_log import read_events
from astroclip_dist.train.weights import WEIGHTS_FILE
from tests.random_survey import write_random_survey

STEPS, STEPS_AN_EPOCH = 30, 6
# Some 0.1 s a step: time enough to hit a run between two saves. With dropout, which a restart must repeat, too. Saves
# are waited for, so that the steps at which a disturbed run goes on are known; ``test_save_kills`` has the others.
CONFIG = """
workers: 2
seed: 7
length: 30 steps
batch: {global_size: 16, lanes: 4, window_shards: 1}
optimizer: {lr: 1e-3, warmup: 2 steps}
checkpoint: {every: 5 steps, keep_last: 2, background: false}
tracking: {log_every: 1}
objective:
  image: {width: 128, depth: 3, heads: 4, crop: 20, patch: 4}
  spectrum: {width: 64, depth: 2, heads: 4}
  head: {embedding: 32}
"""
PATIENCE_S = 120.0


class Command:
    """A running ``astroclip train``; its output is collected line by line.

    Args:
        arguments: overrides, ``key=value``.
        environment: over this process's.
        within: a command that becomes the one after it, in other surroundings (``nsenter``).
    """

    def __init__(
        self,
        config: Path,
        *arguments: str,
        environment: dict[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> None:
        self.process = subprocess.Popen(
            [*within, sys.executable, "-m", "astroclip_dist.cli", "train", str(config), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **(environment or {})},
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str) -> None:
        """Until a line of the output matches."""
        with self._news:
            found = self._news.wait_for(lambda: re.search(pattern, self.output) or self._ended, PATIENCE_S)
        assert found, f"no {pattern!r} in {PATIENCE_S} s:\n{self.output}"
        assert re.search(pattern, self.output), f"ended without {pattern!r}:\n{self.output}"

    def workers(self) -> dict[int, psutil.Process]:
        """Rank to process, of the local launcher's workers."""
        children = psutil.Process(self.process.pid).children()
        return {int(child.environ()["RANK"]): child for child in children if "launchers.worker" in child.cmdline()}

    def kill_worker(self, rank: int, at: str) -> None:
        """SIGKILL one worker when a line of the output matches."""
        self.wait_for(at)
        self.workers()[rank].send_signal(signal.SIGKILL)

    def finish(self) -> int:
        """The exit code; when the command is over, none of its processes may live on."""
        alive = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the command hangs:\n{self.output}") from None
        left = psutil.wait_procs(alive, timeout=5)[1]
        assert not left, f"left behind: {left}"
        with self._news:
            self._news.wait_for(lambda: self._ended, 10)
        return code


def run_command(config: Path, *arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and output of a training that nobody disturbs."""
    command = Command(config, *arguments, environment=environment)
    return command.finish(), command.output


def write_config(folder: Path, data: str, run: str, text: str = CONFIG) -> Path:
    path = folder / "run.yaml"
    path.write_text(f"data: {data}\nrun: {run}\n{text}")
    return path


def result(run: str | Path) -> dict[str, str]:
    """sha256 of every tensor of a run's newest checkpoint (weights, moments, step counts), and of its weights file."""
    store, checkpoint = resolve_checkpoint(str(run))
    manifest = read_checkpoint_manifest(checkpoint)
    tensors = {
        name: torch.empty(about["shape"], dtype=getattr(torch, about["dtype"]))
        for name, about in manifest["tensors"].items()
    }
    read_tensors(checkpoint, tensors)
    digests = {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}
    assert sum(name.startswith("optimizer.") for name in digests) > sum(name.startswith("model.") for name in digests)
    return {
        "cursor": str(manifest["cursor"]),
        **digests,
        WEIGHTS_FILE: hashlib.sha256(store.read(WEIGHTS_FILE)).hexdigest(),
    }


def events(run: str | Path) -> list[tuple[str, int | None]]:
    """(event, step) of a run, oldest first."""
    return [(event["event"], event.get("step")) for event in read_events(Store(run))]


def event(run: str | Path, kind: str) -> list[dict[str, Any]]:
    """All events of one kind."""
    return [event for event in read_events(Store(run)) if event["event"] == kind]


def saves(first: int, last: int) -> list[tuple[str, int | None]]:
    return [("saved", step) for step in range(first, last + 1, 5)]


@cache
def undisturbed(folder: Path) -> tuple[str, dict[str, str]]:
    """The dataset, and the result, of a run by the local launcher that nothing interrupts; trained once a session."""
    write_random_survey(str(folder / "data"), 100)
    data = (folder / "data").as_uri()
    began = time.monotonic()
    code, output = run_command(write_config(folder, data, str(folder / "run")))
    assert code == 0, output
    assert "step 30/30" in output, f"after {time.monotonic() - began:.0f} s:\n{output}"
    assert events(folder / "run") == [("started", 0), *saves(5, STEPS), ("finished", STEPS)]
    return data, result(folder / "run")
