"""All checks, one after the other, each bounded by its deadline; what they say shows no secret."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from astroclip_dist.doctor.checks import Check
from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.findings import Finding, problem
from astroclip_dist.errors import UserError
from astroclip_dist.train.records import mask

_SECRET_NAME = re.compile(r"(?i)(secret|token|passw|credential|(^|_)key)(?!.*_(path|file)$)")
# Shorter values would blank out words that are no secrets.
_SHORTEST_SECRET = 6


@dataclass(frozen=True)
class Examined:
    """What one check found, and how long it took."""

    check: str
    findings: list[Finding]
    seconds: float


def examine(context: Context, checks: Iterable[Check]) -> Iterator[Examined]:
    """Run the checks in their order."""
    for check in checks:
        began = time.monotonic()
        findings = [_without_secrets(finding) for finding in _bounded(check, context)]
        yield Examined(check.name, findings, time.monotonic() - began)


def _bounded(check: Check, context: Context) -> list[Finding]:
    found: list[list[Finding]] = []

    def run() -> None:
        try:
            found.append(check.run(context))
        except UserError as error:
            found.append([problem(f"{error.field}: {error.value}", error.mend)])
        except Exception as error:  # a check that breaks must not keep the others from their word
            found.append([problem(f"the check itself failed: {type(error).__name__}: {error}", "Report it.")])

    # A thread, which is left behind if it hangs: nothing else ends a call into a driver or a library.
    worker = threading.Thread(target=run, name=f"doctor-{check.name}", daemon=True)
    worker.start()
    worker.join(check.deadline_s)
    if found:
        return found[0]
    return [
        problem(
            f"no answer within {check.deadline_s:g} s",
            "Something that this check asks hangs: a driver, a mounted file system, a server.",
        )
    ]


def _without_secrets(finding: Finding) -> Finding:
    values = {key: _clean(value) if isinstance(value, str) else value for key, value in finding.values.items()}
    return replace(finding, what=_clean(finding.what), mend=_clean(finding.mend), values=values)


def _clean(text: str) -> str:
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return mask(text)
