"""Says when a worker reaches which point of its start, without a line of it in the code that is measured.

Python imports this file by itself in every process that has its folder in PYTHONPATH. It watches for the modules
``torch`` and ``astroclip_dist.train.loop`` and lays stamps around what the loop calls. Each worker adds lines to
``$ASTROCLIP_STAMPS/PID.jsonl``: what was reached, and when by the monotonic clock, which all processes of a machine
share.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_reached: dict[str, float] = {"python runs": time.monotonic()}


def _stamp(what: str) -> None:
    if what not in _reached:
        _reached[what] = time.monotonic()
        if "training imported" in _reached:
            about = {"rank": int(os.environ["RANK"]), "reached": _reached}
            path = Path(os.environ["ASTROCLIP_STAMPS"], f"{os.getpid()}.json")
            aside = path.with_suffix(".new")
            aside.write_text(json.dumps(about))
            aside.rename(path)


def _stamped(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        _stamp(what)
        return value

    return wrapper


def _stamp_the_loop(loop: Any) -> None:
    _stamp("training imported")
    loop.join = _stamped(loop.join, "joined")
    loop.build_engine = _stamped(loop.build_engine, "model made")
    loop.restore = _stamped(loop.restore, "checkpoint loaded")
    loop.Journal.__enter__ = _stamped(loop.Journal.__enter__, "journal open")
    loop.Stream.__next__ = _stamped(loop.Stream.__next__, "first batch")
    loop.Journal.step = _stamped(loop.Journal.step, "first step")


_WHEN_IMPORTED: dict[str, Callable[[ModuleType], None]] = {
    "torch": lambda module: _stamp("torch imported"),
    "astroclip_dist.train.loop": _stamp_the_loop,
}


class _Watcher(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        then = _WHEN_IMPORTED.pop(name, None)
        spec = importlib.util.find_spec(name) if then else None
        if then is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module
        if name.endswith(".loop"):
            _stamp("training begins")

        def execute_and_tell(module: ModuleType) -> None:
            execute(module)
            then(module)

        spec.loader.exec_module = execute_and_tell  # type: ignore[method-assign]
        return spec


if "ASTROCLIP_STAMPS" in os.environ:
    sys.meta_path.insert(0, _Watcher())
