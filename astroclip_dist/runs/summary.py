"""What a run folder says of its run, without loading anything large: how far it is, and whether it goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from astroclip_dist.config import RunConfig
from astroclip_dist.errors import DataError, UserError
from astroclip_dist.runs.diary import Event, in_words
from astroclip_dist.runs.wording import ago, many, table
from astroclip_dist.store import MissingObjectError, Store
from astroclip_dist.train.event_log import EVENTS_FILE, read_events
from astroclip_dist.train.holding import HOLDER_FILE, holder
from astroclip_dist.train.run_folder import RUN_FILE, SPOOL_FOLDER, TRACKING_FILE, read_run_config

FINISHED, RUNNING, WAITING, FAILED = "finished", "running", "waiting to be resumed", "failed"
NOT_BEGUN, DAMAGED = "not begun", "damaged"
_AT_ONCE, _SHORT = 16, 70


@dataclass(frozen=True)
class RunSummary:
    """One run.

    Attributes:
        name: below the URL that was asked for.
        objective: what it trains; None where its configuration cannot be read.
        state: in words, one of the constants above.
        why: what the state rests on, in words.
        step, steps: reached as far as the events tell, and in all; None where they do not.
        last_event: in words.
        last_time: of that, ISO 8601, UTC.
        holder: the process that runs it, in words; None: nobody does.
        unsent: batches of tracking records that MLflow does not have yet.
    """

    name: str
    url: str
    objective: str | None
    state: str
    why: str | None
    step: int | None
    steps: int | None
    last_event: str | None
    last_time: str | None
    holder: str | None
    unsent: int

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def find_runs(url: str) -> list[RunSummary]:
    """All runs at or below a URL, by name.

    Raises:
        DataError: there is none.
        StorageError
    """
    folder = Store(url)
    names = [entry.name for entry in folder.list()]
    # A configuration alone makes no run: exported weights have one, too, and so has MLflow among its artifacts.
    configured, begun = (
        _folders_with(names, (RUN_FILE,)),
        _folders_with(names, (EVENTS_FILE, TRACKING_FILE, HOLDER_FILE)),
    )
    runs = sorted(configured & begun)
    if not runs:
        raise DataError(folder.url, "no run there or below", f"Check the URL: a run is a folder with {RUN_FILE}.")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda name: _summary(folder, name, names), runs))


def _folders_with(names: Sequence[str], files: tuple[str, ...]) -> set[str]:
    parts = (name.rpartition("/") for name in names)
    return {folder for folder, _, file in parts if file in files}


def listing(runs: Sequence[RunSummary]) -> str:
    """One line a run."""
    rows = [["run", "objective", "state", "step", "age", "last event"]]
    for run in runs:
        step = "" if run.step is None else f"{run.step:,}/{run.steps:,}" if run.steps else f"{run.step:,}"
        state = run.state + (f", {many(run.unsent, 'batch')} unsent" if run.unsent else "")
        age = ago(run.last_time) if run.last_time else ""
        rows.append([run.name, run.objective or "?", state, step, age, _short(run.last_event or run.why or "")])
    return "\n".join(table(rows))


def summarize(run: Store) -> RunSummary:
    """The run whose folder this is."""
    return _summary(run, "", [entry.name for entry in run.list()])


def _summary(folder: Store, name: str, names: Sequence[str]) -> RunSummary:
    """
    Args:
        names: of all objects in the folder above the run, or the run itself.
    """
    run = folder.join(name) if name else folder
    prefix = f"{name}/" if name else ""
    own = [other.removeprefix(prefix) for other in names if other.startswith(prefix)]
    damage = None
    config: RunConfig | None = None
    try:
        config = read_run_config(run)
    except UserError as error:
        damage = str(error)
    events = events_of(run)
    if _tell_of_saves(events) and not any(
        entry.startswith("checkpoints/") and entry.endswith("/manifest.json") for entry in own
    ):
        damage = "events tell of checkpoints, and none is complete"
    held_by = _holder(run)
    state, why = (DAMAGED, damage) if damage else _state(events, held_by)
    return RunSummary(
        name=name or run.url.rpartition("/")[2],
        url=run.url,
        objective=config.objective.name if config else None,
        state=state,
        why=why,
        step=_last(events, "step"),
        steps=_last(events, "steps"),
        last_event=in_words(events[-1]) if events else None,
        last_time=events[-1].get("time") if events else None,
        holder=held_by,
        unsent=sum(entry.startswith(f"{SPOOL_FOLDER}/") for entry in own),
    )


def has_saved(run: Store) -> bool:
    """Whether the run's events tell of a checkpoint."""
    return _tell_of_saves(events_of(run))


def events_of(run: Store) -> list[Event]:
    """All events, oldest first; none for a run that has not begun."""
    try:
        return read_events(run)
    except MissingObjectError:
        return []


def _tell_of_saves(events: Sequence[Event]) -> bool:
    return any(event.get("event") == "saved" for event in events)


def _short(text: str) -> str:
    line = text.splitlines()[0] if text else ""
    return line if len(line) <= _SHORT else f"{line[: _SHORT - 3]}..."


def _state(events: Sequence[Event], holder: str | None) -> tuple[str, str | None]:
    if any(event.get("event") == "finished" for event in events):
        return FINISHED, None
    if holder is not None:
        return RUNNING, holder
    if not events:
        return NOT_BEGUN, None
    last = events[-1]
    if last.get("event") == "failed":
        return FAILED, str(last.get("error"))
    if last.get("event") == "preempted":
        return WAITING, f"was asked to leave ({last.get('reason')})"
    return WAITING, "ended without a word (killed?)"


def _holder(run: Store) -> str | None:
    found = holder(run)
    return None if found is None else str(found)


def _last(events: Sequence[Event], key: str) -> int | None:
    return next((event[key] for event in reversed(events) if isinstance(event.get(key), int)), None)
