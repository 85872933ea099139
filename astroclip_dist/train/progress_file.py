"""``progress.json`` in the run folder: how far a run is and how fast it goes, for whoever lists jobs."""

from __future__ import annotations

import json
import math
from collections import deque
from datetime import UTC, datetime

from astroclip_dist.store import Store
from astroclip_dist.train.metrics import RunMetrics
from astroclip_dist.train.run_folder import PROGRESS_FILE

# Seconds between two writes; a request to object storage costs money.
LOCAL_INTERVAL_S, REMOTE_INTERVAL_S = 10.0, 30.0
# The rate is that since so many writes ago.
_WRITES = 6
_DEADLINE_S = 20.0


class ProgressFile:
    """Writes what the metrics say, whenever there was another step.

    Its keys: ``step``, ``steps``; ``time`` (ISO 8601, UTC) at which that step ended; ``samples_per_second`` of the last
    minute or so and ``eta_s`` by it, null while unknown; ``loss``, null when it is not finite.
    """

    def __init__(self, run: Store, metrics: RunMetrics, global_batch: int) -> None:
        self._run = Store(run.url, _DEADLINE_S)
        self._metrics, self._global_batch = metrics, global_batch
        # Of each write: the time of its step, and the step.
        self._written: deque[tuple[float, float]] = deque(maxlen=_WRITES)
        self.interval_s = LOCAL_INTERVAL_S if run.is_local else REMOTE_INTERVAL_S

    def write(self) -> None:
        """Called by one thread at a time.

        Raises:
            StorageError
        """
        step, when = (self._metrics.get(f"astroclip_{name}") for name in ("step", "last_step_time_seconds"))
        steps, loss = (self._metrics.get(f"astroclip_{name}") for name in ("target_steps", "loss"))
        if step is None or when is None or steps is None:
            return
        if self._written and self._written[-1][1] == step:
            return
        if not self._written:
            began = self._metrics.get("astroclip_start_time_seconds") or when
            self._written.append((began, step - (self._metrics.get("astroclip_steps_total") or 0.0)))
        before, step_before = self._written[0]
        rate = (step - step_before) / (when - before) if when > before else 0.0
        about = {
            "step": round(step),
            "steps": round(steps),
            "time": datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "samples_per_second": round(rate * self._global_batch, 3) if rate else None,
            "eta_s": round((steps - step) / rate) if rate else None,
            "loss": loss if loss is not None and math.isfinite(loss) else None,
        }
        self._run.put(PROGRESS_FILE, json.dumps(about).encode())
        self._written.append((when, step))
