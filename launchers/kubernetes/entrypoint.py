"""What a RayJob runs: a command of ``astroclip``, and what its exit code means to KubeRay.

KubeRay starts every job again that failed, up to ``backoffLimit`` times, each time with a new cluster; it knows no exit
codes. A job that was stopped through Ray is not started again. So a command whose failure no restart mends has its own
job stopped: the RayJob ends as Complete, its Ray job as STOPPED.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time

from launchers.kubernetes.manifest import ARGUMENTS_VARIABLE, leaving_takes

# A failure that the launcher's own restarts did not mend, wrong configuration, Ctrl-C.
_FINAL = (1, 2, 130)
_HELD_POLL_S = 5.0
_DASHBOARD = "http://127.0.0.1:8265"
log = logging.getLogger("astroclip")


def main() -> int:
    """Run the command; its exit code, if anybody is left to hear it."""
    arguments = json.loads(os.environ[ARGUMENTS_VARIABLE])
    code = _astroclip(arguments)
    began = time.monotonic()
    while code == 1 and _former_start_still_saves(began):
        code = _astroclip(arguments)
    if code in _FINAL:
        _stop_this_job()
    return code


def _astroclip(arguments: list[str]) -> int:
    from astroclip_dist.cli import main as astroclip

    try:
        return astroclip(arguments)
    except SystemExit as error:
        # argparse ends so.
        return error.code if isinstance(error.code, int) else 1


def _former_start_still_saves(began: float) -> bool:
    """Whether another process holds the run and may yet leave: pods of the start before, which Kueue has taken back."""
    from astroclip_dist.config import load_config
    from astroclip_dist.errors import UserError
    from astroclip_dist.store import Store
    from astroclip_dist.train.holding import holder
    from launchers.jobs.task import CONFIG_VARIABLE

    if CONFIG_VARIABLE not in os.environ:
        return False
    try:
        config = load_config(f"env:{CONFIG_VARIABLE}")
        if holder(Store(config.run)) is None or time.monotonic() - began > leaving_takes(config):
            return False
    except UserError:
        return False
    time.sleep(_HELD_POLL_S)
    return True


def _stop_this_job() -> None:
    """Have Ray stop this job, and wait for its signal; without it, KubeRay would start the same failure again."""
    from ray.job_submission import JobSubmissionClient

    log.error("no restart mends this: the job is stopped")
    sys.stdout.flush()
    sys.stderr.flush()
    job = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]["job_submission_id"]
    try:
        JobSubmissionClient(os.environ.get("RAY_API_SERVER_ADDRESS", _DASHBOARD)).stop_job(job)
    except (ConnectionError, RuntimeError) as error:
        log.error("it could not be stopped, and may be started again: %s", error)
        return
    time.sleep(60)


if __name__ == "__main__":
    sys.exit(main())
