"""The request to leave, from the command that started a run to the controller of its workers."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from astroclip_dist.train.preemption import Notice

_NAMESPACE = "astroclip"
_POLL_S = 0.2


class LeaveRequest:
    """A word in the cluster's own key-value store, where the controller looks at every poll of its workers."""

    def __init__(self) -> None:
        self._key = uuid.uuid4().hex

    def reason(self) -> str | None:
        """Why the run is to leave; None when nobody has asked."""
        found = _internal_kv_get(self._key, namespace=_NAMESPACE)
        return found.decode() if found else None

    @contextmanager
    def passing_on(self, notice: Notice) -> Iterator[None]:
        """Pass on what this process is told (signals come at any time) while it waits for the training to end."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(_POLL_S):
                if notice.reason is not None:
                    _internal_kv_put(self._key, notice.reason, namespace=_NAMESPACE)
                    return

        watcher = threading.Thread(target=watch, daemon=True, name="leave-request")
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            if notice.reason is not None:
                _internal_kv_del(self._key, namespace=_NAMESPACE)
