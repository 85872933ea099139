"""A run's events in words, for people who want to know what happened."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

from astroclip_dist.runs.wording import clock, many

Event = dict[str, Any]


def diary(events: Iterable[Event]) -> list[tuple[str, str]]:
    """(time in UTC, what happened) in the order of the events; saves in a row are one entry."""
    entries = []
    for kind, group in groupby(events, lambda event: event.get("event")):
        same = list(group)
        if kind == "saved" and len(same) > 1:
            entries.append((clock(same[-1]["time"]), f"saved {len(same)} times, last step {same[-1].get('step')}"))
        else:
            entries += [(clock(event["time"]), in_words(event)) for event in same]
    return entries


def in_words(event: Event) -> str:
    """One event as a sentence; of a kind that this version does not know, its details as they are."""
    details = {key: value for key, value in event.items() if key not in ("time", "event")}
    kind = event.get("event", "?")
    try:
        return _SENTENCES[kind](details)
    except KeyError:
        rest = ", ".join(f"{key} {value}" for key, value in details.items())
        return f"{kind}: {rest}" if rest else str(kind)


def _started(event: Event) -> str:
    steps = f" of {event['steps']:,}" if "steps" in event else ""
    return f"at step {event['step']:,}{steps} on {many(event['world_size'], 'worker')}"


def _skipped(event: Event) -> str:
    blame = f"not finite: {', '.join(event['keys'][:3])}" if event["keys"] else "no sample is to blame"
    numbers = f"loss {event['loss']}, gradient norm {event['gradient_norm']}"
    return f"skipped step {event['step']:,} ({event['kind']}): {numbers}; {blame}"


def _preempted(event: Event) -> str:
    saved = event.get("saved", event["step"])
    upto = "" if saved == event["step"] else f" up to step {saved:,}"
    return f"left at step {event['step']:,}, saved{upto}: {event['reason']}"


def _restarting(event: Event) -> str:
    size = f" on {many(event['world_size'], 'worker')}" if "world_size" in event else ""
    count = f" (restart {event['attempt']} of {event['of']})" if "attempt" in event else ""
    return f"restarted{size}{count}: {event['cause']}"


_SENTENCES: dict[str, Callable[[Event], str]] = {
    "started": lambda event: f"started {_started(event)}",
    "resumed": lambda event: f"went on {_started(event)}",
    "saved": lambda event: f"saved step {event['step']:,}",
    "unpruned": lambda event: (
        f"could not remove old checkpoints after step {event['step']:,}, "
        f"{many(event['in_a_row'], 'time')} in a row: {event['error']}"
    ),
    "skipped": _skipped,
    "quarantined": lambda event: (
        f"put {many(event['samples'], 'sample')} aside at step {event['step']:,}: {event['what'][0]}"
    ),
    "restarting": _restarting,
    "hung": lambda event: event["message"],
    "unwatched": lambda event: f"went on without its endpoint for Prometheus: {event['error']}",
    "preempted": _preempted,
    "failed": lambda event: f"failed: {event['error']}",
    "finished": lambda event: f"finished at step {event['step']:,}",
}
