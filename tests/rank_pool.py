"""Processes that form a gloo group and run test functions together; started once, used by many tests."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any


class RankPool:
    """``run(function, *args)`` calls a module-level function on every rank and gives the list of results."""

    def __init__(self, world_size: int, patience_s: float = 120.0, preload: Sequence[str] = ()) -> None:
        """
        Args:
            patience_s: how long a rank may take to answer.
            preload: modules that are imported once, by a process from which the ranks are forked, rather than by each.
        """
        self._world_size, self._patience_s, self._preload = world_size, patience_s, list(preload)
        self._ranks: list[tuple[BaseProcess, Connection]] = []

    def _start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")
        if self._preload:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(self._preload)
        for rank in range(self._world_size):
            here, there = context.Pipe()
            arguments = (there, rank, self._world_size, port)
            process: BaseProcess = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            there.close()
            self._ranks.append((process, here))

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Raises AssertionError with the traceback of the first rank that fails, or that does not answer in time."""
        if not self._ranks:
            self._start()
        for _, pipe in self._ranks:
            pipe.send((function, args))
        answers: list[Any] = []
        for rank, (process, pipe) in enumerate(self._ranks):
            patience = 5.0 if any(isinstance(answer, AssertionError) for answer in answers) else self._patience_s
            try:
                answers.append(pipe.recv() if pipe.poll(patience) else AssertionError(f"rank {rank} hangs"))
            except EOFError:
                answers.append(AssertionError(f"rank {rank} died: {_end_of(process)}"))
        failures = [str(answer) for answer in answers if isinstance(answer, AssertionError)]
        if failures:
            # The others may wait in a collective for ever: the next test gets new processes.
            self.close()
            raise AssertionError("\n".join(failures))
        return answers

    def close(self) -> None:
        for process, pipe in self._ranks:
            process.kill()
            process.join()
            pipe.close()
        self._ranks = []


def _end_of(process: BaseProcess) -> str:
    process.join(5.0)
    code = process.exitcode
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _serve(pipe: Connection, rank: int, world_size: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    # What crashes in C tells at least in which call.
    faulthandler.enable()
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    while True:
        function, args = pipe.recv()
        try:
            pipe.send(function(*args))
        except BaseException:
            pipe.send(AssertionError(f"rank {rank}: {traceback.format_exc()}"))
