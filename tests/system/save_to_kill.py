"""Saves of a small model by two ranks, and a SIGKILL of one of them at a chosen storage operation."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import obstore
import torch
import torch._dynamo  # which the first optimizer of a process would import: seconds for each
import torch.distributed as dist

from astroclip_dist.config.run import Checkpoint
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.data.ordering.order import Cursor
from astroclip_dist.parallel.engines.ddp import Ddp
from astroclip_dist.parallel.process_group import Ranks
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import Checkpointer, Progress
from tests.small_engine import fill, small_engine

RANKS = 2
FIRST, SECOND = 10, 20


class Kill(NamedTuple):
    """When a rank is killed: before or after the operation of this number of its second save."""

    rank: int
    operation: int
    after: bool


def save_twice(rank: int, folder: Path, background: bool, kill: Kill | None) -> None:
    """One rank: save at two steps into ``folder/run``, keeping one; be killed during the second save, or write down
    its operations in ``folder/operations-RANK``."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "meeting"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    engine = small_engine(Ranks(rank, RANKS, rank, torch.device("cpu"), made_group=True))
    config = Checkpoint(keep_last=1, background=background)
    checkpointer = Checkpointer(Store(folder / "run"), engine, {}, config, RunSteps(100, 100, 1))
    save(engine, checkpointer, FIRST)
    operations = _Operations(kill if kill and kill.rank == rank else None)
    save(engine, checkpointer, SECOND)
    (folder / f"operations-{rank}").write_text(json.dumps(operations.seen))


def save(engine: Ddp, checkpointer: Checkpointer, step: int) -> None:
    """As the loop saves, with steps that do nothing until the checkpoint is complete."""
    fill(engine, step)
    saved = checkpointer.begin(Progress(step, Cursor(0, step)))
    fill(engine, -1)  # what comes after the copy is not to be in the checkpoint
    while saved is None:
        saving = torch.tensor(float(checkpointer.saving))
        dist.all_reduce(saving)
        saved = checkpointer.advance(saving.item() > 0)


class _Operations:
    """Every write and removal of this process from now on, each of which is a moment to be killed at."""

    def __init__(self, kill: Kill | None) -> None:
        self.seen: list[str] = []
        self._kill, self._lock = kill, threading.RLock()
        obstore.put = self._watched("put", obstore.put)
        obstore.delete = self._watched("delete", obstore.delete)
        setattr(shutil, "rmtree", self._watched("remove folder", shutil.rmtree))  # noqa: B010

    def _watched(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                number = len(self.seen)
                where = arguments[1] if kind != "remove folder" else arguments[0]
                self.seen.append(f"{kind} {'/'.join(str(where).split('/')[-2:])}")
            self._die(number, after=False)
            answer = call(*arguments, **options)
            self._die(number, after=True)
            return answer

        return watched

    def _die(self, number: int, *, after: bool) -> None:
        if self._kill and (number, after) == (self._kill.operation, self._kill.after):
            os.kill(os.getpid(), signal.SIGKILL)
