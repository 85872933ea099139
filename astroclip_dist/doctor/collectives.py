"""Ranks of this machine that add up numbers: over gloo always, over NCCL where there are GPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.findings import Finding, fine, problem
from astroclip_dist.doctor.nvml import NoDriverError, read_driver
from astroclip_dist.doctor.outcome import last_json, last_words
from astroclip_dist.runs.wording import amount, many

_DEADLINE_S = 75.0


def check_collectives(context: Context) -> list[Finding]:
    """Two ranks over gloo, and one a GPU over NCCL."""
    try:
        gpus = len(read_driver().gpus)
    except NoDriverError:
        gpus = 0
    found = [all_reduce("gloo", 2)]
    if gpus:
        found.append(all_reduce("nccl", gpus))
    return found


def all_reduce(backend: Literal["gloo", "nccl"], ranks: int, deadline_s: float = _DEADLINE_S) -> Finding:
    """Start ranks, let them sum a tensor, and end them."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="astroclip-doctor-") as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        command = [sys.executable, "-m", "astroclip_dist.doctor.rank", backend, str(ranks), meeting]
        processes = [
            subprocess.Popen(
                [*command, str(rank)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            for rank in range(ranks)
        ]
        outputs = []
        try:
            for process in processes:
                outputs.append(process.communicate(timeout=max(0.1, deadline_s - (time.monotonic() - began)))[0])
        except subprocess.TimeoutExpired:
            return _failed(backend, many(ranks, "rank"), f"no result within {deadline_s:g} s")
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.communicate()
    return measured(backend, many(ranks, "rank"), outputs)


def measured(backend: str, who: str, outputs: Sequence[str]) -> Finding:
    """What ranks have found, of which the first one prints it."""
    told = last_json(outputs[0], "bytes_a_second")
    if told is None:
        # Of ranks that wait for another one, that one knows more.
        words = sorted(map(last_words, outputs), key=lambda said: "imed out" in said)
        return _failed(backend, who, words[0])
    rate = told["bytes_a_second"]
    about = f"{who} over {backend}: {amount(rate)}/s in an all-reduce"
    return fine(about, backend=backend, ranks=len(outputs), bytes_a_second=round(rate))


def _failed(backend: str, who: str, why: str) -> Finding:
    gloo = "Check GLOO_SOCKET_IFNAME, the machines' names in /etc/hosts or DNS, and firewalls."
    nccl = "Repeat with NCCL_DEBUG=INFO; check the driver, /dev/shm and NCCL_SOCKET_IFNAME."
    return problem(f"{who} over {backend}: {why}", gloo if backend == "gloo" else nccl, backend=backend)
