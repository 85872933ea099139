"""How far runs are, read from their folders at once and within a short time: a listing does not wait for a storage that
is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from queue import Empty, SimpleQueue

from pydantic import AwareDatetime, BaseModel, ValidationError

from astroclip_dist.errors import DataError, UserError
from astroclip_dist.runs.diary import Event, in_words
from astroclip_dist.runs.summary import events_of
from astroclip_dist.store import MissingObjectError, Store
from astroclip_dist.train.holding import holder
from astroclip_dist.train.run_folder import PROGRESS_FILE

_DEADLINE_S = 5.0
_AT_ONCE = 16
# Of a holder on another machine that uses object storage, only its traces tell that it lives.
_FRESH_S = 600.0


@dataclass(frozen=True)
class RunProgress:
    """What a run folder says of its run.

    Attributes:
        step, steps: reached, and in all.
        samples_per_second, eta_s, loss: as the run last said.
        time: of that, ISO 8601, UTC.
        restarts: how often its launcher started the workers again, within all jobs of the run.
        last_event: in words.
        last_event_time: ISO 8601, UTC.
        finished: whether the run is at its end.
        held_by: the process that runs it, in words; None: nobody does.
        alive: whether that process is certain to be there, or was heard of a short while ago.
        trouble: why the folder could not be read; then nothing else is known.
    """

    step: int | None = None
    steps: int | None = None
    samples_per_second: float | None = None
    eta_s: float | None = None
    loss: float | None = None
    time: str | None = None
    restarts: int = 0
    last_event: str | None = None
    last_event_time: str | None = None
    finished: bool = False
    held_by: str | None = None
    alive: bool = False
    trouble: str | None = None


class _Said(BaseModel):
    """``progress.json``, as the first rank of a training writes it."""

    step: int
    steps: int
    time: AwareDatetime
    samples_per_second: float | None = None
    eta_s: float | None = None
    loss: float | None = None


def read_progress(urls: Iterable[str], deadline_s: float = _DEADLINE_S) -> dict[str, RunProgress]:
    """What run folders say; of those that do not answer in ``deadline_s`` seconds, only that. Never raises for one."""
    asked = list(dict.fromkeys(urls))
    todo: SimpleQueue[str] = SimpleQueue()
    done: SimpleQueue[tuple[str, RunProgress]] = SimpleQueue()
    for url in asked:
        todo.put(url)

    def work() -> None:
        while True:
            try:
                url = todo.get_nowait()
            except Empty:
                return
            done.put((url, _progress_of(url, deadline_s)))

    end = time.monotonic() + deadline_s
    for _ in range(min(_AT_ONCE, len(asked))):
        # A thread that a dead file system keeps must not keep the command.
        threading.Thread(target=work, name="progress", daemon=True).start()
    late = RunProgress(trouble=f"no answer within {deadline_s:.0f} s")
    found = dict.fromkeys(asked, late)
    for _ in asked:
        try:
            url, progress = done.get(timeout=max(0.0, end - time.monotonic()))
        except Empty:
            break
        found[url] = progress
    return found


def _progress_of(url: str, deadline_s: float) -> RunProgress:
    try:
        run = Store(url, deadline_s)
        return _combined(_said(run), events_of(run), run)
    except UserError as error:
        return RunProgress(trouble=str(error))
    except Exception as error:  # whatever a folder holds, the listing goes on, and says so
        return RunProgress(trouble=f"not understood ({type(error).__name__}: {error})")


def _said(run: Store) -> _Said | None:
    try:
        return _Said.model_validate_json(run.read(PROGRESS_FILE))
    except MissingObjectError:
        return None
    except ValidationError as error:
        raise DataError(run.locate(PROGRESS_FILE), "damaged", "The run writes it anew at its next step.") from error


def _combined(said: _Said | None, events: list[Event], run: Store) -> RunProgress:
    last = events[-1] if events else {}
    told = _time(last.get("time"))
    heard = [when for when in (told, said.time if said else None) if when is not None]
    held_by = holder(run)
    fresh = bool(heard) and (datetime.now(UTC) - max(heard)).total_seconds() < _FRESH_S
    step = next((event["step"] for event in reversed(events) if isinstance(event.get("step"), int)), None)
    # After a restart the run is back at its checkpoint, of which the event tells first.
    if said is not None and (step is None or told is None or said.time >= told):
        step = said.step
    return RunProgress(
        step=step,
        steps=said.steps if said else next((event["steps"] for event in reversed(events) if "steps" in event), None),
        samples_per_second=said.samples_per_second if said else None,
        eta_s=said.eta_s if said else None,
        loss=said.loss if said else None,
        time=said.time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if said else None,
        restarts=sum(event.get("event") == "restarting" for event in events),
        last_event=in_words(last) if last else None,
        last_event_time=last.get("time"),
        finished=any(event.get("event") == "finished" for event in events),
        held_by=None if held_by is None else str(held_by),
        alive=held_by is not None and (run.is_local or held_by.is_here or fresh),
    )


def _time(when: str | None) -> datetime | None:
    return None if when is None else datetime.fromisoformat(when)
