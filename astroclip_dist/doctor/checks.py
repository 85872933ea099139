"""The checks: each is a function of a file of its own, and one line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from astroclip_dist.doctor.clocks import check_clocks
from astroclip_dist.doctor.collectives import check_collectives
from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.disks import check_disks
from astroclip_dist.doctor.findings import Finding
from astroclip_dist.doctor.gpus import check_gpus
from astroclip_dist.doctor.interfaces import check_interfaces
from astroclip_dist.doctor.kubernetes import check_kubernetes
from astroclip_dist.doctor.machine import check_machine
from astroclip_dist.doctor.ports import check_ports
from astroclip_dist.doctor.ray_cluster import check_ray
from astroclip_dist.doctor.slurm import check_slurm
from astroclip_dist.doctor.storage import check_storage
from astroclip_dist.doctor.torch_build import check_torch
from astroclip_dist.doctor.tracking_server import check_tracking
from astroclip_dist.doctor.versions import check_versions


class Check(NamedTuple):
    """Attributes: deadline_s: when it is given up."""

    name: str
    run: Callable[[Context], list[Finding]]
    deadline_s: float


CHECKS = (
    Check("versions", check_versions, 10),
    Check("gpus", check_gpus, 20),
    Check("torch", check_torch, 90),
    Check("machine", check_machine, 5),
    Check("disks", check_disks, 30),
    Check("interfaces", check_interfaces, 10),
    Check("ports", check_ports, 10),
    Check("storage", check_storage, 120),
    Check("clocks", check_clocks, 20),
    Check("mlflow", check_tracking, 60),
    Check("slurm", check_slurm, 20),
    Check("ray", check_ray, 40),
    Check("kubernetes", check_kubernetes, 20),
    Check("collectives", check_collectives, 180),
)
