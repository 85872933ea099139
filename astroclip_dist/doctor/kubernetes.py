"""Kubernetes: kubectl or a kubeconfig, and whether the API server answers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.findings import Finding, fine, problem, warning
from astroclip_dist.doctor.outcome import ask

_DEADLINE_S = 8.0
_IN_A_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


def check_kubernetes(context: Context) -> list[Finding]:
    """Whether jobs can be handed to a cluster from here."""
    configs = [Path(path) for path in os.environ.get("KUBECONFIG", "").split(os.pathsep) if path]
    there = [path for path in (configs or [Path.home() / ".kube" / "config"]) if path.is_file()]
    if configs and not there:
        mend = "Correct KUBECONFIG, or unset it."
        return [problem(f"KUBECONFIG={os.environ['KUBECONFIG']}: no such file", mend, usable=False)]
    if not there and not _IN_A_POD.exists():
        return [fine("no kubeconfig: jobs cannot be handed to Kubernetes from here", usable=False)]
    if shutil.which("kubectl") is None:
        mend = "Install kubectl, to ask the cluster from here."
        return [warning("there is a kubeconfig, but no kubectl", mend, usable=False)]
    answers, said = ask(["kubectl", f"--request-timeout={_DEADLINE_S:g}s", "get", "--raw", "/version"], _DEADLINE_S + 2)
    if not answers:
        mend = "Check the current context (kubectl config current-context), its server and your login."
        return [warning(f"the Kubernetes API server does not answer: {said}", mend, usable=False)]
    kinds, listed = ask(
        ["kubectl", f"--request-timeout={_DEADLINE_S:g}s", "api-resources", "--output=name"], _DEADLINE_S + 2
    )
    missing = [kind for kind in ("rayjobs.ray.io", "localqueues.kueue.x-k8s.io") if kind not in listed]
    if kinds and missing:
        mend = "Install KubeRay and Kueue: ops/kubernetes."
        return [problem(f"the cluster does not know {' and '.join(missing)}", mend, usable=False)]
    return [fine("the Kubernetes API server answers, with KubeRay and Kueue", usable=True)]
