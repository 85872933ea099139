"""What is told to MLflow, as small dicts ready for JSON; apart from MLflow itself, which takes seconds to import.

A record has ``kind`` (metric, param, tag, artifact, status), ``key`` and ``value``; a metric has ``step`` and
``timestamp`` (ms) too, a status ``timestamp``; an artifact's value is its content in base64.
"""

from __future__ import annotations

import re
import time
from typing import Any

Record = dict[str, Any]
# MLflow's own limit of a parameter's value.
PARAM_LENGTH = 6000


def mask(text: str) -> str:
    """Without the user and password of any URL in it."""
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", text)


def now_ms() -> int:
    return time.time_ns() // 1_000_000
