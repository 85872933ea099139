"""What a Ray job runs on the node of its driver: one command of ``astroclip``, started again when it dies.

Ray never starts a job again. A command that was killed, or that left with its state saved although nobody stopped the
job, goes on from here as long as the cluster's head lives.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time

from astroclip_dist.errors import UserError
from launchers.exit_codes import CRASHED, PREEMPTED
from launchers.leaving import LeaveSignals
from launchers.ray.restarts import note_restarts
from launchers.ray.secret_names import require_secrets

_POLL_S = 0.2
# A command that dies again and again must not keep the node busy with starts.
_PAUSE_S = 5.0


def main(arguments: list[str] | None = None) -> int:
    """Run the command to its end.

    Returns:
        The command's exit code; 75, too, when its time is over.
    """
    parser = argparse.ArgumentParser("python -m launchers.ray.job", description=__doc__)
    parser.add_argument("--max-restarts", type=int, required=True)
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="of each start")
    parser.add_argument("--stop-within", type=float, required=True, metavar="SECONDS", help="to save and leave")
    parser.add_argument("command", nargs="+", metavar="ARGUMENT", help="of astroclip")
    options = parser.parse_args(arguments)
    try:
        require_secrets()
    except UserError as error:
        _say(f"error: {error}")
        return error.exit_code
    restarts = 0
    with LeaveSignals() as signals:
        while True:
            code, out_of_time = _run(options.command, options.time_limit, options.stop_within, signals)
            if signals.notice.reason is not None:
                return code
            if out_of_time:
                _say(f"out of time ({options.time_limit:g} s); submit the job again, and it goes on")
                return PREEMPTED
            if code >= 0 and code not in (CRASHED, PREEMPTED):
                return code
            if restarts == options.max_restarts:
                _say(f"{_in_words(code)}; no restarts left (max_restarts = {restarts})")
                return code if code > 0 else 128 - code
            restarts += 1
            _say(f"{_in_words(code)}: restart {restarts} of {options.max_restarts}")
            _count(restarts)
            time.sleep(_PAUSE_S)


def _run(command: list[str], time_limit: float | None, stop_within: float, signals: LeaveSignals) -> tuple[int, bool]:
    """Start the command once.

    Returns:
        Its exit code (negative: died of that signal), and whether its time was over.
    """
    if signals.notice.reason is not None:
        return PREEMPTED, False
    # In the group of this process, which Ray kills when the job's own actor is gone.
    child = subprocess.Popen([sys.executable, "-m", "astroclip_dist.cli", *command], stdin=subprocess.DEVNULL)
    end = time.monotonic() + time_limit if time_limit else float("inf")
    deadline, out_of_time = float("inf"), False
    try:
        while (code := child.poll()) is None:
            now = time.monotonic()
            if deadline == float("inf") and (signals.notice.reason is not None or now > end):
                out_of_time = signals.notice.reason is None
                child.send_signal(signal.SIGTERM)
                deadline = now + stop_within
            if now > deadline:
                _say(f"not gone after {stop_within:g} s: killed")
                child.kill()
            time.sleep(_POLL_S)
        # An end that comes with the signal is the command's own, unless it says that it left because of that.
        return code, out_of_time and code in (PREEMPTED, -signal.SIGTERM, -signal.SIGKILL)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def _count(restarts: int) -> None:
    try:
        note_restarts(restarts)
    except Exception as error:  # whatever another version of Ray raises: the training goes on without the count
        _say(f"Ray was not told that this is restart {restarts}: {error}")


def _in_words(code: int) -> str:
    if code < 0:
        return f"astroclip was killed by {signal.Signals(-code).name}"
    return f"astroclip ended with exit code {code}"


def _say(words: str) -> None:
    print(words, flush=True)


if __name__ == "__main__":
    sys.exit(main())
