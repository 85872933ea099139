"""Slurm: its commands, and whether its controller answers."""

from __future__ import annotations

import os
import shutil

from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.findings import Finding, Values, fine, problem, warning
from astroclip_dist.doctor.outcome import ask
from astroclip_dist.runs.wording import many

_DEADLINE_S = 8.0


def check_slurm(context: Context) -> list[Finding]:
    """Whether jobs can be handed to it from here."""
    if shutil.which("sbatch") is None:
        return [fine("no sbatch in PATH: jobs cannot be handed to Slurm from here", usable=False)]
    answers, said = ask(["sinfo", "--noheader", "--format=%P %D %T"], _DEADLINE_S)
    if not answers:
        mend = "Check slurm.conf (SLURM_CONF), munge, and on the controller: scontrol ping."
        # The commands alone may be there by chance; within a job, or where a file is named, Slurm is meant.
        meant = any(name in os.environ for name in ("SLURM_CONF", "SLURM_JOB_ID"))
        say = problem if meant else warning
        return [say(f"Slurm's controller does not answer: {said}", mend, usable=False)]
    version = ask(["sbatch", "--version"], _DEADLINE_S)[1]
    states = [line.split() for line in said.splitlines()]
    nodes = sum(int(count) for _, count, _ in states)
    partitions = sorted({partition for partition, _, _ in states})
    about = f"{version} answers: partitions {', '.join(partitions)}"
    values: Values = {
        "usable": True,
        "version": version,
        "partitions": ",".join(name.rstrip("*") for name in partitions),
    }
    if not nodes or all(state.startswith(("down", "drain", "unk")) for _, _, state in states):
        return [warning(f"{about}, but no node is up", "sinfo -R says why.", **values)]
    return [fine(about + f" ({many(nodes, 'node')}, counted once a partition)", **values)]
