"""Commands asked with a deadline, and what is to be found in what they print."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any


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


def last_json(output: str, first_key: str) -> dict[str, Any] | None:
    """The last line that is an object with such a first key; warnings of libraries may stand around it."""
    lines = [line for line in output.splitlines() if line.startswith(f'{{"{first_key}"')]
    return json.loads(lines[-1]) if lines else None


def last_words(output: str) -> str:
    """The last line in which something stands, of a traceback its error."""
    return next((line for line in reversed(output.splitlines()) if line.strip()), "no word")[:300]
