"""Where a job may go: each engine's own settings in a job file, chosen by ``launcher.name``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from astroclip_dist.config.strict import Section
from astroclip_dist.config.units import Seconds


def _written(pattern: str, words: str, at_most: int = 253) -> AfterValidator:
    def check(text: str) -> str:
        if len(text) > at_most or not re.fullmatch(pattern, text):
            raise ValueError(f"Kubernetes wants {words} here")
        return text

    return AfterValidator(check)


# kubernetes.io/docs/concepts/overview/working-with-objects, pages names and labels.
_DNS_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_DNS_NAME = rf"{_DNS_LABEL}(\.{_DNS_LABEL})*"
_LABEL_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
Namespace = Annotated[str, _written(_DNS_LABEL, "1 to 63 lower-case letters, digits and '-'")]
ObjectName = Annotated[str, _written(_DNS_NAME, "lower-case letters, digits, '-' and '.'")]
LabelKey = Annotated[str, _written(rf"({_DNS_NAME}/)?{_LABEL_NAME}", "a label's key such as cloud.site/rack", 316)]
LabelValue = Annotated[str, _written(f"({_LABEL_NAME})?", "a label's value: up to 63 letters, digits, '-', '_', '.'")]
MountPath = Annotated[str, _written(r"(/[A-Za-z0-9_][-A-Za-z0-9_.]*)+", "an absolute path such as /shared")]


def _absolute(path: str) -> str:
    """The same wherever it is read again."""
    return str(Path(path).expanduser().absolute())


def _dashboard(address: str) -> str:
    if not re.fullmatch(r"https?://[^\s/@?#]+/?", address):
        raise ValueError("give the dashboard of the cluster, which has the jobs API, without a login: http://HEAD:8265")
    return address.rstrip("/")


class LocalPlace(Section):
    """This machine, one job after the other."""

    name: Literal["local"] = "local"


class RayPlace(Section):
    """A Ray cluster that is there.

    The token is that of Ray's own variables, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or lies in ``~/.ray/auth_token``.
    """

    name: Literal["ray"] = "ray"
    address: Annotated[str, AfterValidator(_dashboard)] = Field(description="of its dashboard: http://HEAD:8265")


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
    folder: Annotated[str, AfterValidator(_absolute)] = Field(
        default="~/astroclip-jobs", description="for logs and scripts, on the shared file system", validate_default=True
    )


class VolumeClaim(Section):
    """A PersistentVolumeClaim that every node may write."""

    name: ObjectName
    mount: MountPath = "/shared"


class KubernetesPlace(Section):
    """A Kubernetes cluster with KubeRay and Kueue."""

    name: Literal["kubernetes"] = "kubernetes"
    namespace: Namespace = "default"
    context: str | None = Field(default=None, description="of the kubeconfig; its current one if unset")
    service_account: ObjectName | None = None
    secret: ObjectName | None = Field(default=None, description="Secret that holds the job's secrets under their names")
    pull_secret: ObjectName | None = Field(default=None, description="Secret with which the image is pulled")
    volume: VolumeClaim | None = None
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    gpu_resource: LabelKey = "nvidia.com/gpu"
    topology: LabelKey | None = Field(
        default=None, description="node label within whose value all pods that train are to lie"
    )
    keep_for: Seconds = Field(
        default=0.0, ge=0, lt=2**31, description="after its end, while its pods stay to be looked at, on their machines"
    )


Place = Annotated[LocalPlace | RayPlace | SlurmPlace | KubernetesPlace, Field(discriminator="name")]
