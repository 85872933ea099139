"""Ray inside of a job: its head beside the batch shell, the other nodes by one srun, all of them ended with the job."""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from launchers.ray import ENDS_WITH_RUN
from launchers.slurm.commands import host_names, run
from launchers.slurm.ray_node import STARTED, RayNode, RayNodeError, address_towards

_JOIN_S = 300.0
_END_S = 20.0


class RayNodes:
    """A Ray cluster of all nodes of this job, while within; it gives the variables with which it is reached.

    Args:
        slots: workers that have room on each node.
        gpus: of each node.
        folder: on the file system that the nodes share, for the token.
    """

    def __init__(self, slots: int, gpus: int, folder: Path) -> None:
        self._slots, self._gpus, self._folder = slots, gpus, folder
        self._stack = ExitStack()
        self._joined = 0
        self._news = threading.Condition()

    def __enter__(self) -> dict[str, str]:
        with ExitStack() as stack:
            token = self._folder / f"{os.environ['SLURM_JOB_ID']}.token"
            _write_private(token, secrets.token_hex(32))
            stack.callback(token.unlink, missing_ok=True)
            # In this process, too: the head and srun take them from here.
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), RAY_USAGE_STATS_ENABLED="0")
            others = [name for name in host_names(os.environ["SLURM_JOB_NODELIST"]) if name != _this_node()]
            own = address_towards(_address_of(others[0])) if others else "127.0.0.1"
            port, client_port = _free_ports(own, 2)
            # No dashboard: memory for what nobody looks at.
            head = ["--head", f"--port={port}", f"--ray-client-server-port={client_port}", "--include-dashboard=false"]
            stack.enter_context(RayNode(head, own, self._slots, self._gpus))
            address = f"{own}:{port}"
            if others:
                self._start_others(stack, address, others)
            self._stack = stack.pop_all()
        return {"RAY_ADDRESS": address, ENDS_WITH_RUN: "1"}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start_others(self, stack: ExitStack, address: str, others: list[str]) -> None:
        count = len(others)
        where = [f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", f"--nodelist={','.join(others)}"]
        # All of the nodes, beside the batch shell; one of them that fails does not end the others.
        how = ["--overlap", "--cpu-bind=none", "--kill-on-bad-exit=0", "--export=ALL", "--unbuffered"]
        if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
            how.append(f"--cpus-per-task={cpus}")
        node = [sys.executable, "-u", "-m", "launchers.slurm.ray_node", address, f"--slots={self._slots}"]
        step = subprocess.Popen(
            ["srun", *where, *how, *node, f"--gpus={self._gpus}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        stack.callback(_end, step)
        threading.Thread(target=self._read, args=(step,), daemon=True).start()
        with self._news:
            if not self._news.wait_for(lambda: self._joined >= count or step.poll() is not None, _JOIN_S):
                raise RayNodeError(f"only {self._joined} of {count} other nodes have joined in {_JOIN_S:.0f} s")
            if self._joined < count:
                raise RayNodeError(f"the step of the other nodes ended with {step.returncode}")

    def _read(self, step: subprocess.Popen[str]) -> None:
        assert step.stdout is not None
        for line in step.stdout:
            print(line, end="", flush=True)
            with self._news:
                self._joined += line.startswith(STARTED)
                self._news.notify_all()
        step.wait()
        with self._news:
            self._news.notify_all()


def _end(step: subprocess.Popen[str]) -> None:
    """By its input, at whose end the nodes leave: a signal to srun would have them killed after KillWait."""
    assert step.stdin is not None
    step.stdin.close()
    try:
        step.wait(_END_S)
    except subprocess.TimeoutExpired:
        step.kill()
        step.wait()


def _this_node() -> str:
    return os.environ["SLURMD_NODENAME"]


def _address_of(node: str) -> str:
    """By which Slurm itself reaches a node."""
    told = run(["scontrol", "--oneliner", "show", "node", node])
    found = re.search(r"NodeAddr=(\S+)", told)
    return socket.gethostbyname(found[1] if found else node)


def _free_ports(address: str, count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((address, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
