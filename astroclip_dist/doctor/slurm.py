"""Slurm: its commands, and whether its controller answers."""

from __future__ import annotations

import os
import shutil

from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.findings import Finding, Values, fine, problem, warning
from astroclip_dist.doctor.outcome import ask
from astroclip_dist.runs.wording import many

_DEADLINE_S = 8.0
_UNUSABLE = ("down", "drain", "fail", "unk", "maint")


def check_slurm(context: Context) -> list[Finding]:
    """Whether jobs can be handed to it from here."""
    if shutil.which("sbatch") is None:
        return [fine("no sbatch in PATH: jobs cannot be handed to Slurm from here", usable=False)]
    answers, said = ask(["sinfo", "--noheader", "--Node", "--format=%N %P %T"], _DEADLINE_S)
    if not answers:
        mend = "Check slurm.conf (SLURM_CONF), munge, and on the controller: scontrol ping."
        # The commands alone may be there by chance; within a job, or where a file is named, Slurm is meant.
        meant = any(name in os.environ for name in ("SLURM_CONF", "SLURM_JOB_ID"))
        say = problem if meant else warning
        return [say(f"Slurm's controller does not answer: {said}", mend, usable=False)]
    version = ask(["sbatch", "--version"], _DEADLINE_S)[1]
    rows = [line.split() for line in said.splitlines()]
    partitions = sorted({partition.rstrip("*") for _, partition, _ in rows})
    nodes = {node for node, _, _ in rows}
    usable = {node for node, _, state in rows if not state.startswith(_UNUSABLE)}
    can = f"{len(usable)} of {many(len(nodes), 'node')} can be used"
    about = f"{version} answers: {can}, partitions {', '.join(partitions)}"
    values: Values = {"usable": bool(usable), "version": version, "nodes": len(nodes), "usable_nodes": len(usable)}
    if not usable:
        return [warning(about, "sinfo -R says why.", **values)]
    return [fine(about, **values)]
