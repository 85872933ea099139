"""Steps done again after a SIGKILL of a worker, over the steps between two saves; the result must not differ.

A training by the local launcher, two processes, loses a random one of them again and again. Half of the kills come at
a moment that is uniform over the start-up of the workers (imports, joining, loading), half at one that is uniform over
the first 20 steps after it, in which four saves are begun: the run gets on, by a few steps a kill, whatever else the
machine does.

Afterwards weights, optimizer state and cursor must be those of the undisturbed training, bit for bit; the events must
tell every restart; MLflow must have every step once. Else the measure is broken: it says what differs, and fails.

The ratio is the mean over the kills that hit a training. A kill costs the steps since the last complete save: half of
those between two saves in the mean, and at most twice as many as there are between two, where a save is still being
written.
"""

from __future__ import annotations

import itertools
import re
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

from astroclip_dist.store import Store
from astroclip_dist.train.mlflow_run import read_history
from tests.benchmarks.result import Result, Size, measure_parser, print_result
from tests.random_survey import write_random_survey
from tests.system.training_runs import CONFIG, Command, event, result, write_config

KILLS: dict[Size, int] = {"small": 3, "default": 20, "large": 100}
EVERY = 5
# After so many steps of an attempt at most it is killed, so a run of as many for each kill outlasts them all.
STEPS_A_KILL = 20
PATIENCE_S = 900.0
_STEP = re.compile(r" step (\d+)/")


@dataclass(frozen=True)
class Moment:
    """When a worker is killed: some seconds after its start, or after more than so many steps, whatever comes first;
    and then a part of a step later."""

    after_s: float
    steps: int
    then_s: float


@dataclass
class Attempt:
    """What happened from one start of the workers to their end.

    Attributes:
        rank: that was killed; None: the attempt reached the end of the run.
        after_s: from the start to the kill.
        steps: that the first rank did, in order.
    """

    rank: int | None = None
    after_s: float = 0.0
    steps: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class KilledRun:
    """Attributes:
    attempts: the last one reached the end.
    steps: length of the run.
    lost: steps that each kill cost, of the kills that hit a training.
    took_s, alone_s: with the kills, and undisturbed.
    differences: in words, from what an undisturbed run leaves; none if all is well.
    """

    attempts: list[Attempt]
    steps: int
    lost: list[int]
    took_s: float
    alone_s: float
    differences: list[str]

    @property
    def kills(self) -> int:
        return len(self.attempts) - 1

    @property
    def computed(self) -> int:
        return sum(len(attempt.steps) for attempt in self.attempts)


def kill_loop(folder: Path, kills: int, seed: int) -> KilledRun:
    """Train twice in an empty folder: undisturbed, and killed ``kills`` times.

    Raises:
        RuntimeError: a training failed, or ended before all kills were done.
    """
    random = Random(seed)
    steps = STEPS_A_KILL * (kills + 1)
    write_random_survey(str(folder / "data"), 100)
    for name in ("alone", "killed"):
        (folder / name).mkdir()
    text = CONFIG.replace("30 steps", f"{steps} steps") + f"health: {{max_restarts: {kills}}}\n"
    tracking = f"tracking.uri=sqlite:///{folder}/mlflow.db"

    config = write_config(folder / "alone", (folder / "data").as_uri(), str(folder / "alone" / "run"), text)
    began = time.monotonic()
    command = Command(config, tracking)
    _new_workers(command, set())
    started = time.monotonic()
    command.wait_for(r" step 1/")
    startup_s = time.monotonic() - started
    _wait_for_end(command)
    ended = time.monotonic()
    moments = [_moment(random, startup_s, (ended - started - startup_s) / steps) for _ in range(kills)]

    config = write_config(folder / "killed", (folder / "data").as_uri(), str(folder / "killed" / "run"), text)
    killed_began = time.monotonic()
    command = Command(config, tracking)
    attempts = _kill_at(command, moments, random)
    _wait_for_end(command)
    took_s = time.monotonic() - killed_began
    if len(attempts) <= kills:
        raise RuntimeError(f"the run ended after {len(attempts) - 1} of {kills} kills (seed {seed})")
    trained = [attempt.steps for attempt in attempts if attempt.steps]
    return KilledRun(
        attempts,
        steps,
        [before[-1] - after[0] + 1 for before, after in itertools.pairwise(trained)],
        took_s,
        ended - began,
        _differences(folder / "alone" / "run", folder / "killed" / "run", attempts, steps),
    )


def _moment(random: Random, startup_s: float, step_s: float) -> Moment:
    if random.random() < 0.5:
        return Moment(random.uniform(0, startup_s), STEPS_A_KILL, 0.0)
    return Moment(PATIENCE_S, random.randrange(STEPS_A_KILL), random.uniform(0, step_s))


def _kill_at(command: Command, moments: list[Moment], random: Random) -> list[Attempt]:
    """Kill a worker at each moment after a start; ends early where the run does."""
    attempts, boundaries, seen = [], [], set[int]()
    for moment in [*moments, None]:
        workers = _new_workers(command, seen)
        # What earlier workers wrote is read by now: new ones take seconds to say their first word.
        boundaries.append(len(command.lines))
        if not workers:
            break
        seen |= {process.pid for process in workers.values()}
        if moment is None:
            attempts.append(Attempt())
            break
        began = time.monotonic()
        while len(_steps(command.lines[boundaries[-1] :])) <= moment.steps:
            if time.monotonic() - began >= moment.after_s or command.process.poll() is not None:
                break
            time.sleep(0.005)
        time.sleep(moment.then_s)
        rank = random.choice(sorted(workers))
        workers[rank].kill()
        attempts.append(Attempt(rank, time.monotonic() - began))
    _wait_for_end(command)
    for attempt, (first, last) in zip(attempts, itertools.pairwise([*boundaries, len(command.lines)]), strict=False):
        attempt.steps = _steps(command.lines[first:last])
    return attempts


def _steps(lines: list[str]) -> list[int]:
    return [int(found[1]) for line in lines if (found := _STEP.search(line))]


def _new_workers(command: Command, seen: set[int]) -> dict[int, psutil.Process]:
    """All ranks of the next start, as soon as they live; none when the command ends instead."""
    give_up = time.monotonic() + PATIENCE_S
    while command.process.poll() is None and time.monotonic() < give_up:
        try:
            workers = {rank: process for rank, process in command.workers().items() if process.pid not in seen}
        except psutil.Error:  # one that ends at this moment
            continue
        if len(workers) == 2:
            return workers
        time.sleep(0.01)
    return {}


def _wait_for_end(command: Command) -> None:
    command.process.wait(PATIENCE_S)
    if code := command.finish():
        raise RuntimeError(f"exit code {code}:\n{command.output[-8000:]}")


def _differences(alone: Path, killed: Path, attempts: list[Attempt], steps: int) -> list[str]:
    """What the killed run left behind that it should not, or did not that it should."""
    found = []
    expected, left = result(alone), result(killed)
    if other := sorted(name for name in expected | left if expected.get(name) != left.get(name)):
        found.append(f"{len(other)} of {len(expected)} parts of the result differ: {', '.join(other[:5])}")
    kills = len(attempts) - 1
    if (told := len(event(killed, "restarting"))) != kills:
        found.append(f"the events tell {told} restarts, there were {kills}")
    # A start that was killed before its first step may have been written down or not.
    trained = [attempt.steps[0] - 1 for attempt in attempts if attempt.steps]
    begun = [entry["step"] for entry in event(killed, "started") + event(killed, "resumed")]
    if missing := sorted(set(trained) - set(begun)):
        found.append(f"no event tells the start at {missing}")
    if uneven := [step for step in begun if step % EVERY]:
        found.append(f"went on at {uneven}, where nothing was saved")
    logged = [step for step, _ in read_history(Store(killed), "loss")]
    if logged != list(range(1, steps + 1)):
        twice = sorted({step for step in logged if logged.count(step) > 1})
        absent = sorted(set(range(1, steps + 1)) - set(logged))
        found.append(f"MLflow has steps {twice[:10]} more than once and lacks {len(absent)}: {absent[:10]}")
    return found


def main() -> None:
    parser = measure_parser(__doc__)
    parser.add_argument("--kills", type=int, help="how many (default: by the size)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of who is killed")
    args = parser.parse_args()
    kills = args.kills or KILLS[args.size]
    with tempfile.TemporaryDirectory(prefix="astroclip-kill-loop-") as folder:
        run = kill_loop(Path(folder), kills, args.seed)
    if run.differences:
        sys.exit(f"killed {run.kills} times (seed {args.seed}), the run differs: {'; '.join(run.differences)}")
    lost = iter([*run.lost, 0])
    rows: list[list[object]] = []
    for number, attempt in enumerate(run.attempts, 1):
        rows.append(
            [
                number,
                "-" if attempt.rank is None else f"{attempt.after_s:.2f}",
                "-" if attempt.rank is None else attempt.rank,
                f"{attempt.steps[0]} to {attempt.steps[-1]}" if attempt.steps else "in start-up",
                next(lost) if attempt.steps else 0,
            ]
        )
    print_result(
        Result("kill_loop", statistics.fmean(run.lost or [0]) / EVERY, "<= 1"),
        f"{run.steps} steps, a save every {EVERY}, seed {args.seed}; {run.kills} kills, {len(run.lost)} of them in "
        "training",
        ["start", "killed after s", "rank", "steps", "lost"],
        rows,
        [
            f"{run.computed} steps computed for {run.steps}; {run.took_s:.0f} s with the kills, {run.alone_s:.0f} s "
            "without",
            "weights, optimizer state and cursor: bit for bit those of the undisturbed run; every restart in the "
            "events; every step in MLflow once",
        ],
    )


if __name__ == "__main__":
    main()
