"""Trainings of a few processes, one of which is made to hang or to fail; all are forked from one with torch in it."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from astroclip_dist.config import load_config
from astroclip_dist.store import Store
from astroclip_dist.train.run_folder import register

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "astroclip_dist.train.loop",
        "astroclip_dist.objectives.clip",
        "astroclip_dist.parallel.engines.ddp",
        "launchers.worker",
        "mlflow.tracking.client",
        "mlflow.store.tracking.sqlalchemy_store",
    ]
)
PATIENCE_S = 120.0
# What a rank does, and where it puts that.
Deed = Callable[..., None]
Disturbance = Callable[[Deed], None]


def hang(*_: object, **__: object) -> None:
    print(f"hangs from {time.time()}", flush=True)
    time.sleep(3600)


def stop(*_: object, **__: object) -> None:
    """As a debugger or a queue stops a process: no thread of it runs on."""
    print(f"hangs from {time.time()}", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)


def pause(*_: object, **__: object) -> None:
    print("pauses", flush=True)
    time.sleep(2.0)


def fail(*_: object, **__: object) -> None:
    """As a mistake in the code would."""
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (16x128 and 64x32)")


def magnify(loss: Any, **_: object) -> None:
    """The loss of this rank's part of a batch, before the ranks agree on that of the whole."""
    loss.mul_(100.0)


def in_data(do: Deed, call: int = 3) -> None:
    from astroclip_dist.data.streaming.stream import Stream

    Stream.__next__ = _before(call, Stream.__next__, do)  # type: ignore[method-assign]


def in_backward(do: Deed, call: int = 3) -> None:
    """Within autograd, in the hook of a tensor."""
    from astroclip_dist.parallel.engines.ddp import Ddp

    def hook(engine: Ddp, loss: Any, *, last: bool) -> None:
        loss.register_hook(do)

    Ddp._backward = _before(call, Ddp._backward, hook)  # type: ignore[method-assign]


def before_a_collective(do: Deed, call: int = 3) -> None:
    """The all-reduce in which the ranks agree."""
    from astroclip_dist.train import loop

    loop.agree = _before(call, loop.agree, do)


def in_save(do: Deed) -> None:
    """While a part of a checkpoint is put into the storage."""
    put = Store.put

    def disturbed(store: Store, name: str, *args: Any, **kwargs: Any) -> Any:
        if name.endswith(".safetensors"):
            do()
        return put(store, name, *args, **kwargs)

    Store.put = disturbed  # type: ignore[method-assign, assignment]


def _before(call: int, function: Callable[..., Any], do: Deed) -> Callable[..., Any]:
    calls = iter(range(1, 1000))

    def disturbed(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            do(*args, **kwargs)
        return function(*args, **kwargs)

    return disturbed


class Training:
    """A run of which one rank does something else somewhere, in processes as a launcher starts them."""

    def __init__(
        self,
        config: Path,
        overrides: list[str],
        *,
        rank: int = 0,
        where: Disturbance | None = None,
        do: Deed = hang,
    ) -> None:
        loaded = load_config(config, overrides)
        self.run = Store(loaded.run)
        register(self.run, loaded)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._outputs = [config.parent / f"{port}-{number}.log" for number in range(loaded.workers)]
        self._processes: list[BaseProcess] = []
        for number, output in enumerate(self._outputs):
            disturb = (where, do) if where and number == rank else None
            arguments = (loaded.model_dump_json(), number, loaded.workers, port, output, disturb)
            self._processes.append(CONTEXT.Process(target=_work, args=arguments, daemon=True))
            self._processes[-1].start()

    def signal(self, rank: int, number: int, at: str) -> None:
        """Send one rank's process a signal when a pattern is in the output."""
        deadline = time.monotonic() + PATIENCE_S
        while not re.search(at, self.output):
            assert time.monotonic() < deadline, f"no {at!r} in {PATIENCE_S} s:\n{self.output}"
            time.sleep(0.02)
        pid = self._processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def finish(self, *, but: int | None = None) -> list[int | None]:
        """Exit codes by rank; that of one rank is not waited for."""
        deadline = time.monotonic() + PATIENCE_S
        try:
            for rank, process in enumerate(self._processes):
                if rank != but:
                    process.join(deadline - time.monotonic())
            return [process.exitcode for process in self._processes]
        finally:
            for process in self._processes:
                process.kill()
                process.join()

    @property
    def output(self) -> str:
        """Of all ranks, one after the other."""
        return "".join(output.read_text() for output in self._outputs if output.exists())

    @property
    def hangs_from(self) -> float:
        """``time.time()``."""
        return float(re.findall(r"hangs from ([\d.]+)", self.output)[0])


def _work(
    config: str, rank: int, world_size: int, port: int, output: Path, disturb: tuple[Disturbance, Deed] | None
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    # As the local launcher talks to a worker: its configuration, over a pipe that stays open.
    there, here = os.pipe()
    os.write(here, config.encode() + b"\n")
    sys.stdin = os.fdopen(there)
    import torch

    from launchers import worker

    torch.set_num_threads(1)
    if disturb is not None:
        where, do = disturb
        where(do)
    code = worker.main()
    sys.stdout.flush()
    os._exit(code)
