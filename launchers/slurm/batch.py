"""What runs in the batch shell of a job: the command, Ray around it where it wants one, and another start if need be.

The script ``exec``s this, so that Slurm's signals come here. SIGUSR2 says that the time limit is near or that the job
gives way to another one, and SIGTERM that Slurm ends it: the command is asked to save and leave. A command that has
left so, or has crashed, is queued again by the job itself, as often as the job may be started again; this needs nothing
of the site, while a job that ends with an exit code of its own is over for Slurm.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from astroclip_dist.errors import UserError
from launchers.exit_codes import CRASHED, PREEMPTED
from launchers.slurm.commands import RefusedError, job_details, run
from launchers.slurm.ray_node import RayNodeError
from launchers.slurm.ray_nodes import RayNodes

_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class Batch:
    """One start of a job.

    Args:
        max_restarts: how often the job may be started again, whatever the cause.
    """

    def __init__(self, max_restarts: int) -> None:
        self._job = _job_id()
        self._restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self._max_restarts = max_restarts
        self._told: str | None = None
        self._command: subprocess.Popen[bytes] | None = None
        for number in _SIGNALS:
            signal.signal(number, self._received)

    def run(self, arguments: Sequence[str], ray: RayNodes | None) -> int:
        """Run a command of ``astroclip`` to its end, or until the job is queued again.

        Returns:
            The exit code of the job.
        """
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        _say(f"start {self._restarts + 1} of {self._max_restarts + 1} at most, {now} UTC, on {_nodes()}")
        if self._restarts > self._max_restarts:
            _say(f"started {self._restarts} times again, more than max_restarts = {self._max_restarts}: giving up")
            return 1
        code = self._run(arguments, ray)
        # Of those that a signal ended, Python gives its negative number.
        if code not in (PREEMPTED, CRASHED) and code >= 0:
            return code
        how = {PREEMPTED: "saved and left", CRASHED: "crashed"}.get(code, f"was killed by signal {-code}")
        self._queue_again(how)
        return code if code > 0 else 128 - code

    def _run(self, arguments: Sequence[str], ray: RayNodes | None) -> int:
        with ExitStack() as stack:
            try:
                environment = stack.enter_context(ray) if ray else {}
            except RayNodeError as error:
                _say(str(error))
                return CRASHED
            if self._told:
                return PREEMPTED
            command = [sys.executable, "-u", "-m", "astroclip_dist.cli", *arguments]
            self._command = subprocess.Popen(command, env={**os.environ, **environment})
            if self._told:
                # Between the look above and the start of the command.
                self._command.send_signal(signal.SIGTERM)
            return self._command.wait()

    def _queue_again(self, how: str) -> None:
        if self._restarts >= self._max_restarts:
            _say(f"the command {how}; not queued again: max_restarts = {self._max_restarts} is reached")
            return
        # When Slurm takes the request, or ends the job by itself, it sends SIGTERM to all of the job, scontrol as well.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        try:
            # One that was cancelled, or that Slurm itself has queued again already, is not to be touched.
            if (state := job_details(self._job).get("JobState")) != "RUNNING":
                _say(f"the command {how}; Slurm says that the job is {state}")
                return
            run(["scontrol", "requeue", self._job])
            _say(f"the command {how}; queued again ({self._told or 'by itself'})")
        except (RefusedError, UserError) as error:
            _say(f"the command {how}; cannot be queued again: {error}")

    def _received(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self._told = self._told or name
        # print() may be what was interrupted.
        os.write(1, f"--- job {self._job}: {name}: the command is asked to leave\n".encode())
        if self._command is not None:
            self._command.send_signal(signal.SIGTERM)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-restarts", type=int, required=True)
    parser.add_argument("--ray-slots", type=int, help="start Ray on all nodes, with room for so many workers on each")
    parser.add_argument("--ray-gpus", type=int, default=0, help="of each node")
    parser.add_argument("--ray-folder", type=Path, help="on the shared file system, for the token")
    parser.add_argument("arguments", nargs="+", help="of astroclip")
    options = parser.parse_args()
    ray = RayNodes(options.ray_slots, options.ray_gpus, options.ray_folder) if options.ray_slots else None
    return Batch(options.max_restarts).run(options.arguments, ray)


def _job_id() -> str:
    """J, or J_N: the plain id of an array's last element is that of the array, and would mean all of them."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _nodes() -> str:
    return os.environ.get("SLURM_JOB_NODELIST", "?")


def _say(what: str) -> None:
    print(f"--- job {_job_id()}: {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
