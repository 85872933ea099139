"""Where a job may go: each engine's own settings in a job file, chosen by ``launcher.name``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from astroclip_dist.config.strict import Section
from astroclip_dist.config.units import Seconds


class LocalPlace(Section):
    """This machine, one job after the other."""

    name: Literal["local"] = "local"


class RayPlace(Section):
    """A Ray cluster that is there.

    The token is that of Ray's own variables, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or lies in ``~/.ray/auth_token``.
    """

    name: Literal["ray"] = "ray"
    address: str = Field(
        pattern=r"^https?://[^\s/@?#]+/?$", description="of its dashboard: http://HEAD:8265, the port with the jobs API"
    )


class SlurmPlace(Section):
    """A Slurm cluster whose commands (sbatch, squeue, ...) are on this machine, and whose nodes share a file system."""

    name: Literal["slurm"] = "slurm"
    account: str | None = None
    constraint: str | None = Field(default=None, description="features that the nodes must have")
    exclude: tuple[str, ...] = Field(default=(), description="nodes that are not to be used")
    gpu_type: str | None = Field(default=None, description="as the site names it in --gres=gpu:TYPE:N")
    notice: Seconds = Field(default=120.0, gt=0, description="before the time limit, to save and leave")
    setup: tuple[str, ...] = Field(default=(), description="lines of shell before the job: modules, a scratch folder")
    python: str | None = Field(
        default=None, description="interpreter on the nodes with astroclip-dist; this one if unset"
    )
    folder: str = Field(default="slurm", description="for logs and scripts, on the shared file system")


class VolumeClaim(Section):
    """A PersistentVolumeClaim that every node may write."""

    name: str
    mount: str = "/shared"


class KubernetesPlace(Section):
    """A Kubernetes cluster with KubeRay and Kueue."""

    name: Literal["kubernetes"] = "kubernetes"
    namespace: str = "default"
    context: str | None = Field(default=None, description="of the kubeconfig; its current one if unset")
    service_account: str | None = None
    secret: str | None = Field(default=None, description="Secret that holds the job's secrets under their names")
    pull_secret: str | None = Field(default=None, description="Secret with which the image is pulled")
    volume: VolumeClaim | None = None
    node_selector: dict[str, str] = Field(default_factory=dict)
    gpu_resource: str = "nvidia.com/gpu"
    topology: str | None = Field(default=None, description="node label within whose value all pods are to lie")
    keep_for: Seconds = Field(default=3600.0, ge=0, description="after its end, until the job is deleted")


Place = Annotated[LocalPlace | RayPlace | SlurmPlace | KubernetesPlace, Field(discriminator="name")]
