"""What Slurm says when it refuses a job, as an error that names the field of the job file."""

from __future__ import annotations

import re
from collections.abc import Callable

from astroclip_dist.errors import ConfigError
from launchers.jobs.places import SlurmPlace
from launchers.jobs.spec import JobSpec
from launchers.slurm.commands import RefusedError, run

_Field = Callable[[JobSpec, SlurmPlace], tuple[str, object]]
_REFUSALS: tuple[tuple[str, _Field, str], ...] = (
    ("invalid partition", lambda job, place: ("queue", job.queue), "There is no such partition. {partitions}"),
    ("account", lambda job, place: ("launcher.account", place.account), "Take one of: sacctmgr show assoc user=$USER"),
    ("invalid qos", lambda job, place: ("priority", job.priority), "Take a QOS that you have: sacctmgr show assoc"),
    ("feature", lambda job, place: ("launcher.constraint", place.constraint), "No node has it: sinfo -o '%N %f'"),
    ("invalid node name", lambda job, place: ("launcher.exclude", list(place.exclude)), "Take names of sinfo -N."),
    ("job array", lambda job, place: ("sweep", len(job.sweep)), "More runs than an array may have (MaxArraySize)."),
    ("generic resource|gres", lambda job, place: ("gpus_per_node", job.gpus_per_node), "Nodes have: {partitions}"),
    ("time limit", lambda job, place: ("time_limit", job.time_limit), "More than may be asked for. {partitions}"),
    ("dependency", lambda job, place: ("after", "a job before it"), "Slurm has forgotten it: submit that one again."),
    ("qos policy|qosmin|qosmax|accounting/qos", lambda job, place: ("quota", _size(job)), "{words}. Ask for less."),
    ("node configuration|node count|more processors|memory spec", lambda job, place: ("nodes", _size(job)), "{fits}"),
    ("access|permission|not permitted", lambda job, place: ("queue", job.queue), "You may not use it: {words}."),
)


def refusal(error: RefusedError, job: JobSpec, place: SlurmPlace) -> ConfigError:
    """The error that tells the user what to change."""
    said = str(error)
    for pattern, field, mend in _REFUSALS:
        if re.search(pattern, said, re.IGNORECASE):
            name, value = field(job, place)
            words = said.removeprefix("sbatch: error: ")
            fits = "No set of nodes there has all of it. {partitions}"
            text = mend.replace("{fits}", fits).replace("{words}", words)
            if "{partitions}" in text:
                text = text.replace("{partitions}", _partitions())
            return ConfigError(name, value, text)
    return ConfigError("slurm", said, "sbatch refuses the job.")


def nodes_away(error: RefusedError, job: JobSpec) -> list[str]:
    """Nodes that are down or drained, where they may be why no set of nodes would do: a job may wait for them."""
    if "node configuration" not in str(error):
        return []
    where = [f"--partition={job.queue}"] if job.queue else []
    return sorted(run(["sinfo", "--list-reasons", "--noheader", "--format=%n", *where]).split())


def _size(job: JobSpec) -> str:
    parts = [f"{job.nodes} nodes"]
    if job.gpus_per_node:
        parts.append(f"{job.gpus_per_node} GPUs a node")
    if job.cpus_per_node:
        parts.append(f"{job.cpus_per_node} CPUs a node")
    if job.memory_per_node:
        parts.append(f"{job.memory_per_node / 1e9:.0f} GB a node")
    return ", ".join(parts)


def _partitions() -> str:
    """Partitions with their sizes, in words."""
    try:
        told = run(["sinfo", "--noheader", "--format=%R|%D|%c|%m|%G|%l"])
    except RefusedError:
        return "See sinfo."
    words = []
    for line in sorted(set(told.splitlines())):
        name, nodes, cpus, memory, gres, limit = line.split("|")
        gpus = "" if gres == "(null)" else f", {gres}"
        words.append(f"{name} ({nodes} nodes of {cpus} CPUs, {memory} MB{gpus}, time limit {limit})")
    return "There are " + "; ".join(words) + "."
