"""The commands of queues, asked with a deadline."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


def ask(command: Sequence[str], deadline_s: float) -> tuple[bool, str]:
    """Whether a command succeeded in time, and what it said: its output, or why not in one line."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=deadline_s, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {deadline_s:g} s"
    except OSError as error:
        return False, error.strerror or str(error)
    if done.returncode == 0:
        return True, done.stdout.strip()
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return False, said[-1][:200] if said else f"exit code {done.returncode}"
