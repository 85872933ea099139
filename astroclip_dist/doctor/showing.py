"""What was found, for people and for programs."""

from __future__ import annotations

import dataclasses
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from astroclip_dist.doctor.examination import Examined
from astroclip_dist.doctor.findings import Finding
from astroclip_dist.runs.wording import many

_STATE_WIDTH, _NAME_WIDTH = len("warning"), len("collectives")


def lines(examined: Examined) -> Iterable[str]:
    """One line a finding, and one below it that says the mend."""
    for finding in examined.findings:
        yield f"{finding.state:{_STATE_WIDTH}}  {examined.check:{_NAME_WIDTH}}  {finding.what}"
        if finding.mend:
            yield f"{'':{_STATE_WIDTH}}  {'':{_NAME_WIDTH}}  -> {finding.mend}"


def verdict(all_examined: Sequence[Examined]) -> str:
    """The last line."""
    counts = Counter(finding.state for finding in _findings(all_examined))
    seconds = sum(examined.seconds for examined in all_examined)
    return f"{many(counts['problem'], 'problem')}, {many(counts['warning'], 'warning')} in {seconds:.0f} s"


def is_well(all_examined: Sequence[Examined]) -> bool:
    return all(finding.state != "problem" for finding in _findings(all_examined))


def as_json(all_examined: Sequence[Examined]) -> dict[str, Any]:
    return {
        "host": platform.node(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "ok": is_well(all_examined),
        "checks": [
            {
                "check": examined.check,
                "seconds": round(examined.seconds, 3),
                "findings": [dataclasses.asdict(finding) for finding in examined.findings],
            }
            for examined in all_examined
        ],
    }


def _findings(all_examined: Sequence[Examined]) -> list[Finding]:
    return [finding for examined in all_examined for finding in examined.findings]
