"""Run as a small job of its own on the head, where a training's driver is: Ray has no other way to signal a process.

The training saves and leaves; ``launchers.ray.job`` starts it again.
"""

from __future__ import annotations

import json
import os
import sys

import psutil

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def main() -> int:
    """Ask the training of the job in the first argument to save and leave; 1 where it does not run here."""
    job_id = sys.argv[1]
    for process in psutil.process_iter():
        try:
            if "launchers.ray.job" in process.cmdline() and job_of(process.environ()) == job_id:
                for child in process.children():
                    child.terminate()
                    print(f"asked process {child.pid} to save and leave", flush=True)
                    return 0
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    print(f"{job_id} has no running command on the head at this moment", flush=True)
    return 1


def job_of(environment: dict[str, str] | os._Environ[str]) -> str | None:
    """The id, as its submitter knows it, of the Ray job that a process with these variables is part of."""
    told = json.loads(environment.get(JOB_VARIABLE, "{}"))
    return told.get("metadata", {}).get("job_submission_id")


if __name__ == "__main__":
    sys.exit(main())
