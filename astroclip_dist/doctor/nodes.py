"""The nodes of a Slurm job or of a Ray cluster: one command on each of them at the same time."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from astroclip_dist.doctor.outcome import ask
from astroclip_dist.errors import ConfigError, StorageError

_ANSWER_S = 30.0
_JOIN_S = 60.0


@dataclass(frozen=True)
class Node:
    """A machine.

    Attributes:
        address: by which the others reach it.
        run: a command of Python there, within so many seconds; gives what it printed, standard error included.
    """

    name: str
    address: str
    run: Callable[[Sequence[str], float], str]


def nodes_here() -> list[Node]:
    """Those of the Slurm job that this process is in, else those of the cluster of RAY_ADDRESS.

    Raises:
        ConfigError: there is neither. StorageError: Slurm or Ray does not answer.
    """
    if "SLURM_JOB_NODELIST" in os.environ:
        return _of_slurm(os.environ["SLURM_JOB_NODELIST"])
    if "RAY_ADDRESS" in os.environ:
        return _of_ray(os.environ["RAY_ADDRESS"])
    mend = "Run it in a job of Slurm, Ray or Kubernetes, or set RAY_ADDRESS; of this machine alone: leave it out."
    raise ConfigError("--each-node", "no nodes are known", mend)


def on_each(nodes: Sequence[Node], commands: Sequence[Sequence[str]], within_s: float) -> list[str]:
    """What each node's command printed."""
    with ThreadPoolExecutor(len(nodes)) as threads:
        return list(threads.map(lambda node, command: node.run(command, within_s), nodes, commands))


def _of_slurm(node_list: str) -> list[Node]:
    found = []
    cpus = [f"--cpus-per-task={count}"] if (count := os.environ.get("SLURM_CPUS_PER_TASK")) else []
    for name in _asked(["scontrol", "show", "hostnames", node_list]).split():
        told = re.search(r"NodeAddr=(\S+)", _asked(["scontrol", "--oneliner", "show", "node", name]))
        # All of the node, beside the batch shell.
        where = ["srun", "--nodes=1", "--ntasks=1", f"--nodelist={name}", "--overlap", "--cpu-bind=none"]
        found.append(Node(name, told[1] if told else name, partial(_run, before=[*where, *cpus])))
    return found


def _asked(command: list[str]) -> str:
    answers, said = ask(command, _ANSWER_S)
    if not answers:
        raise StorageError("slurm", said, "Slurm does not answer: see whether sinfo does.")
    return said


def _of_ray(address: str) -> list[Node]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:
        raise StorageError("RAY_ADDRESS", address, f"Ray does not let us in: {error}") from error

    def run(node_id: str, command: Sequence[str], within_s: float) -> str:
        place = NodeAffinitySchedulingStrategy(node_id, soft=False)
        # Of no resources: it also looks at nodes that are busy.
        task: Any = ray.remote(_run).options(num_cpus=0, max_retries=0, scheduling_strategy=place)
        try:
            return ray.get(task.remote(command, within_s), timeout=within_s + _JOIN_S)
        except ray.exceptions.RayError as error:
            return f"Ray could not run it there: {str(error).splitlines()[0]}"

    return [
        Node(node["NodeManagerHostname"], node["NodeManagerAddress"], partial(run, node["NodeID"]))
        for node in ray.nodes()
        # A head that only coordinates trains nothing.
        if node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU"))
    ]


def _run(command: Sequence[str], within_s: float, before: Sequence[str] = ()) -> str:
    # Ray hides the GPUs from what asks for none.
    environment = {key: value for key, value in os.environ.items() if value or key != "CUDA_VISIBLE_DEVICES"}
    try:
        return subprocess.run(
            [*before, sys.executable, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=within_s,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired:
        return f"no answer within {within_s:g} s"
    except OSError as error:
        return str(error)
