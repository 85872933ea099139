"""Ranks of this machine that add up numbers: over gloo always, over NCCL where there are GPUs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.findings import Finding, fine, problem
from astroclip_dist.doctor.nvml import NoDriverError, read_driver
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
        meeting = Path(folder) / "meeting"
        command = [sys.executable, "-m", "astroclip_dist.doctor.rank", backend, str(ranks), str(meeting)]
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
            return _failed(backend, ranks, f"no result within {deadline_s:g} s")
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.communicate()
    if any(process.returncode for process in processes):
        failed = next(output for process, output in zip(processes, outputs, strict=True) if process.returncode)
        return _failed(backend, ranks, next((line for line in reversed(failed.splitlines()) if line), "no word")[:300])
    rate = json.loads(outputs[0].splitlines()[-1])["bytes_a_second"]
    return fine(
        f"{many(ranks, 'rank')} over {backend}: {amount(rate)}/s in an all-reduce",
        backend=backend,
        ranks=ranks,
        bytes_a_second=round(rate),
        seconds=round(time.monotonic() - began, 1),
    )


def _failed(backend: str, ranks: int, why: str) -> Finding:
    gloo = "Check GLOO_SOCKET_IFNAME, this machine's name in /etc/hosts and its firewall."
    nccl = "Repeat with NCCL_DEBUG=INFO; check the driver, /dev/shm and NCCL_SOCKET_IFNAME."
    mend = gloo if backend == "gloo" else nccl
    return problem(f"{many(ranks, 'rank')} over {backend}: {why}", mend, backend=backend, ranks=ranks)
