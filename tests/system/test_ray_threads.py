"""How many threads a worker under Ray computes with."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from astroclip_dist.machine_limits import usable_cores

# Prints the threads of a worker without, and of one with the variable of its job.
_WORKERS = """
import ray, torch
from launchers.ray.worker import share_cores

def threads():
    share_cores(1)
    return torch.get_num_threads()

ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", logging_level="ERROR")
asked = {"env_vars": {"OMP_NUM_THREADS": "1"}}
remote = ray.remote(num_cpus=1)(threads)
print(*ray.get([remote.remote(), remote.options(runtime_env=asked).remote()]))
"""


@pytest.mark.slow
@pytest.mark.skipif(usable_cores() < 2, reason="Ray itself gives a worker one thread")
@pytest.mark.parametrize(("given", "threads"), [(None, f"{usable_cores():.0f} 1"), ("1", "1 1")])
def test_a_worker_has_the_cores_of_its_node_unless_the_job_or_the_node_says_otherwise(
    given: str | None, threads: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0"} | ({} if given is None else {"OMP_NUM_THREADS": given})
    told = subprocess.check_output([sys.executable, "-c", _WORKERS], env=environment, text=True, timeout=120)
    assert told.splitlines()[-1] == threads
