"""One save after the other: a copy of the state in memory, written to storage while training goes on.

::

    training thread   copy | steps ...              | steps ...
    background        .....| hash, put rank-N       | (first rank) put manifest, latest; remove what is not kept
    agreed by ranks                                 ^ all have written                    ^ complete

No collective runs outside of the training thread: the ranks tell each other at step boundaries how far they are.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from astroclip_dist.parallel.engines import Engine
from astroclip_dist.store import MissingObjectError, Store
from astroclip_dist.train.checkpoint.errors_of_ranks import LateError, gather_or_raise
from astroclip_dist.train.checkpoint.file_image import FileImage, pack, unpack
from astroclip_dist.train.checkpoint.folder import clear_folder, point_latest
from astroclip_dist.train.checkpoint.manifest import MANIFEST_NAME, seal
from astroclip_dist.train.checkpoint.plan import WritePlan
from astroclip_dist.train.checkpoint.restoring import whole_state
from astroclip_dist.train.checkpoint.retention import Retention, prune
from astroclip_dist.train.run_folder import TRACKING_FILE

log = logging.getLogger(__name__)


@dataclass
class Save:
    """A save, under way or complete.

    Attributes:
        work: what this rank does for it now, in the background; from writing its part comes a ``WrittenFile``, packed:
            for many parts on many ranks that takes long, and training waits while the ranks tell each other.
        parts_written: whether all ranks have written their parts.
        complete: on the first rank, whether it is the newest checkpoint; old ones may yet have to be removed.
        unpruned: on the first rank, why what is not to be kept is still there.
    """

    name: str
    about: dict[str, Any]
    work: Future[bytes | None]
    parts_written: bool = False
    complete: bool = False
    unpruned: str | None = None


class Saver:
    """Saves an engine's state into a run folder; every method is called by all ranks together.

    The plan, and the buffer for this rank's part of the state, are made at the first save, and kept.

    Args:
        beside: what the objective keeps outside of the engine's module, the same on all ranks.

    Attributes:
        before_newest: called on the first rank, in the background, before a checkpoint becomes the newest.
    """

    def __init__(self, run: Store, engine: Engine, beside: Mapping[str, Tensor], retention: Retention) -> None:
        self._run, self._engine, self._beside, self._retention = run, engine, beside, retention
        self.before_newest: Callable[[], None] | None = None
        self._plan: WritePlan | None = None
        self._image: FileImage | None = None
        self._save: Save | None = None

    @property
    def under_way(self) -> str | None:
        """Name of the save that is not complete."""
        return self._save.name if self._save else None

    @property
    def writing(self) -> bool:
        """Whether this rank writes at this moment."""
        return self._save is not None and not self._save.work.done()

    def begin(self, name: str, about: dict[str, Any]) -> None:
        """Copy the state as it is now, and start to write it. None may be under way.

        Args:
            about: what the manifest says beside the tensors, as JSON values.
        """
        assert self._save is None
        state, ranks = whole_state(self._engine, self._beside), self._engine.ranks
        with torch.no_grad():
            if self._plan is None:
                self._plan = WritePlan.make(state)
            if self._image is None:
                self._image = FileImage(self._plan.indices, pinned=ranks.device.type == "cuda")
            self._plan.copy(state, self._image)
        copied = torch.cuda.current_stream().record_event() if ranks.device.type == "cuda" else None
        self._save = Save(name, about, _in_background(self._write_parts, name, self._image, copied))

    def proceed(self, deadline: float | None) -> Save | None:
        """Wait until all ranks have done what they do for the save under way, and go on with what comes after that.

        Args:
            deadline: of ``time.monotonic()``; None: without limit.

        Returns:
            The save, if it is complete now.

        Raises:
            LateError: the save was given up, for a rank was not done at the deadline; nothing points to it.
            Exception: what went wrong on any rank.
        """
        save, ranks = self._save, self._engine.ranks
        assert save is not None
        wait([save.work], None if deadline is None else max(0.0, deadline - time.monotonic()))
        try:
            done = gather_or_raise(ranks, _outcome(save))
        except Exception:
            # What still runs keeps the buffer for itself.
            self._save = self._image = None
            raise
        if save.parts_written:
            self._save = None
            return save
        save.parts_written = True
        if ranks.is_first:
            save.work = _in_background(self._complete, save, done)
        return None

    def _write_parts(self, name: str, image: FileImage, copied: torch.cuda.Event | None) -> bytes | None:
        """This rank's file, packed; None if it has no part of the state."""
        assert self._plan is not None
        if copied is not None:
            copied.synchronize()
        if not self._plan.indices:
            return None
        file = image.describe(f"rank-{self._engine.ranks.rank:05d}.safetensors")
        self._run.join(name).put(file.name, image.bytes())
        return pack(file)

    def _complete(self, save: Save, written: list[bytes | None]) -> None:
        """Make a checkpoint of what all ranks have written."""
        assert self._plan is not None
        files = [unpack(file) for file in written if file is not None]
        folder = self._run.join(save.name)
        # Of a save that was interrupted, or of a damaged checkpoint that was trained past again.
        clear_folder(folder, keep=frozenset(file.name for file in files))
        if self.before_newest is not None:
            self.before_newest()
        manifest = {**save.about, "mlflow_run_id": _mlflow_run_id(self._run), **self._plan.manifest(files)}
        folder.put(MANIFEST_NAME, seal(manifest))
        point_latest(self._run, save.name)
        save.unpruned = "there was no time for it"
        save.complete = True
        try:
            prune(self._run, self._retention, newest=save.name)
            save.unpruned = None
        except Exception as error:  # what training needs is saved; the next save tries again
            save.unpruned = str(error)
            log.error("%s is complete, but old checkpoints could not be removed: %s", save.name, error)


def _in_background(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Call it in a thread that does not keep the process alive."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future


def _outcome(save: Save) -> bytes | Exception | None:
    if not save.work.done():
        return None if save.complete else LateError("not written in time")
    error = save.work.exception()
    if error is None:
        # What the ranks have written they tell once.
        return None if save.parts_written else save.work.result()
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


def _mlflow_run_id(run: Store) -> str | None:
    try:
        return json.loads(run.read(TRACKING_FILE))["run_id"]
    except MissingObjectError:
        return None
