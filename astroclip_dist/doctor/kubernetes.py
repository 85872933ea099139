"""Kubernetes: a kubeconfig or a pod's own account, and whether the API server answers and knows what jobs need."""

from __future__ import annotations

import os
from pathlib import Path

from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.findings import Finding, fine, problem, warning

_DEADLINE_S = 5.0
# A pod's own account; the pods of our trainings have none.
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_NEEDED = {"ray.io": "KubeRay", "kueue.x-k8s.io": "Kueue"}


def check_kubernetes(context: Context) -> list[Finding]:
    """Whether jobs can be handed to a cluster from here."""
    named = os.environ.get("KUBECONFIG")
    files = [Path(path) for path in (named or str(Path.home() / ".kube/config")).split(os.pathsep)]
    if named and not any(file.is_file() for file in files):
        return [problem(f"KUBECONFIG={named}: no such file", "Correct KUBECONFIG, or unset it.", usable=False)]
    in_a_pod = named is None and _ACCOUNT.is_file()
    if not in_a_pod and not any(file.is_file() for file in files):
        return [fine("no kubeconfig: jobs cannot be handed to Kubernetes from here", usable=False)]
    try:
        from kubernetes import client, config
    except ImportError:
        mend = "To hand jobs to it from here: pip install -c constraints.txt 'astroclip-dist[kubernetes]'."
        return [warning("there is a kubeconfig, but no client of Kubernetes", mend, usable=False)]
    settings = client.Configuration()
    try:
        if in_a_pod:
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(named, client_configuration=settings)
    except config.ConfigException as error:
        mend = "Look at kubectl config get-contexts and current-context."
        return [problem(f"the kubeconfig cannot be used: {error}", mend, usable=False)]
    settings.retries = 0
    return [_ask(client.ApiClient(settings), meant=named is not None or in_a_pod)]


def _ask(api: object, meant: bool) -> Finding:
    """
    Args:
        meant: whether this cluster was named for this session; a kubeconfig at home may be of long ago.
    """
    from kubernetes import client
    from urllib3.exceptions import HTTPError

    server = api.configuration.host  # type: ignore[attr-defined]
    try:
        version = client.VersionApi(api).get_code(_request_timeout=_DEADLINE_S).git_version
        groups = {group.name for group in client.ApisApi(api).get_api_versions(_request_timeout=_DEADLINE_S).groups}
    except client.ApiException as error:
        mend = "Log in again, or choose another context of the kubeconfig."
        return problem(f"Kubernetes at {server} refuses us: {error.status} {error.reason}", mend, usable=False)
    except (HTTPError, OSError) as error:
        why = getattr(error, "reason", error)
        mend = "Check the network or VPN to it, and the current context: kubectl config current-context."
        say = problem if meant else warning
        return say(f"Kubernetes at {server} does not answer: {why}", mend, usable=False)
    missing = [name for group, name in _NEEDED.items() if group not in groups]
    if missing:
        mend = "Install them: ops/kubernetes/README.md."
        return problem(f"Kubernetes {version} at {server} has no {' and no '.join(missing)}", mend, usable=False)
    return fine(f"Kubernetes {version} at {server} answers, with KubeRay and Kueue", usable=True, version=version)
