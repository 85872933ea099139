"""The API of one Kubernetes cluster, as far as jobs need it; its refusals in the words of a job file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from astroclip_dist.errors import ConfigError, StorageError
from launchers.jobs.places import KubernetesPlace
from launchers.kubernetes.manifest import MANAGED_BY

Object = dict[str, Any]

_OURS = ",".join(f"{key}={value}" for key, value in MANAGED_BY.items())
_ANSWER_S = 30.0
# A line of a training may be minutes away; the server itself ends a connection that says nothing for hours.
_NEXT_LINE_S = 4 * 3600.0
# What an object is without its content: a Secret's values stay where they are.
_NO_CONTENT = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


class MissingError(Exception):
    """No such object, or no such kind of object; the message is the server's."""


class ExistsError(Exception):
    """An object of that name is there."""


class Cluster:
    """One namespace of a cluster, as the user of a kubeconfig, or of a pod.

    Every method may raise StorageError where the API server does not answer, and ConfigError where it refuses.
    """

    def __init__(self, place: KubernetesPlace) -> None:
        try:
            from kubernetes import client, config
        except ImportError as error:
            mend = "Install the client of Kubernetes: pip install 'astroclip-dist[kubernetes]'."
            raise ConfigError("launcher.name", "kubernetes", mend) from error
        self._place, self._context = place, place.context or "the current one"
        settings = client.Configuration()
        try:
            file = os.environ.get("KUBECONFIG")
            if place.context is None and file is None and "KUBERNETES_SERVICE_HOST" in os.environ:
                config.load_incluster_config(client_configuration=settings)
            else:
                config.load_kube_config(file, context=place.context, client_configuration=settings)
        except config.ConfigException as error:
            mend = f"No cluster is known by it, see kubectl config get-contexts: {error}"
            raise ConfigError("launcher.context", self._context, mend) from error
        settings.retries = 2
        self._api = client.ApiClient(settings)

    def create_job(self, manifest: Object, dry_run: bool = False) -> None:
        """
        Args:
            dry_run: go through all of the server's checks, those of KubeRay and Kueue included, and keep nothing.

        Raises:
            ExistsError: a RayJob of that name is there.
            ConfigError: it is refused; also where there is no such namespace, or no KubeRay.
        """
        query = {
            "fieldValidation": "Strict",
            "fieldManager": "astroclip-dist",
            **({"dryRun": "All"} if dry_run else {}),
        }
        try:
            self._ask("POST", self._ray_jobs(), query, manifest)
        except MissingError as error:
            if "namespaces" in str(error):
                mend = "The cluster has none of that name."
                raise ConfigError("launcher.namespace", self._place.namespace, mend) from error
            mend = f"It has no RayJobs: install KubeRay (ops/kubernetes/README.md). It says: {error}."
            raise ConfigError("launcher.context", self._context, mend) from error

    def job(self, name: str) -> Object | None:
        """One RayJob, None where there is none of that name."""
        try:
            return self._ask("GET", self._ray_jobs(name))
        except MissingError:
            return None

    def jobs(self) -> list[Object]:
        """Those RayJobs that were submitted by this package."""
        return self._items(self._ray_jobs(), {"labelSelector": _OURS})

    def delete_job(self, name: str) -> None:
        """Delete a RayJob after all that it owns; nothing, where there is none of that name."""
        try:
            self._ask("DELETE", self._ray_jobs(name), {"propagationPolicy": "Foreground"})
        except MissingError:
            return

    def workloads(self) -> list[Object]:
        """What Kueue has made of the jobs of this namespace."""
        return self._items(self._kueue("workloads"))

    def activate(self, workload: str, active: bool) -> None:
        """Let Kueue run a workload, or take its machines back."""
        self._ask("PATCH", self._kueue(f"workloads/{workload}"), body={"spec": {"active": active}})

    def local_queues(self) -> list[str]:
        """Names of this namespace's."""
        return [one["metadata"]["name"] for one in self._items(self._kueue("localqueues"))]

    def priority_classes(self) -> list[str]:
        """Names of the cluster's."""
        return [one["metadata"]["name"] for one in self._items("/apis/kueue.x-k8s.io/v1beta2/workloadpriorityclasses")]

    def lacks(self, plural: str, name: str) -> bool:
        """Whether there is certainly no such object of the core API; False for those who may not look."""
        try:
            self._ask("GET", f"/api/v1/namespaces/{self._place.namespace}/{plural}/{name}", accept=_NO_CONTENT)
        except MissingError:
            return True
        except ConfigError:
            return False
        return False

    def pods(self, selector: str) -> list[Object]:
        """Pods by label."""
        return self._items(f"/api/v1/namespaces/{self._place.namespace}/pods", {"labelSelector": selector})

    def log(self, pod: str, follow: bool, after: str = "") -> Iterator[tuple[str, str]]:
        """When, and what, a pod's only container has printed, line by line; the server ends it when it likes.

        Args:
            after: the time of the last line that is known.

        Raises:
            MissingError: the pod is gone.
        """
        path = f"/api/v1/namespaces/{self._place.namespace}/pods/{pod}/log"
        query = {
            "timestamps": "true",
            **({"follow": "true"} if follow else {}),
            **({"sinceTime": after} if after else {}),
        }
        answer = self._send("GET", path, query, accept="*/*", wait_s=_NEXT_LINE_S if follow else _ANSWER_S)
        rest = b""
        for part in self._parts(answer):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                when, _, text = line.decode(errors="replace").partition(" ")
                # The server knows whole seconds alone.
                if when > after:
                    yield when, text

    def _ray_jobs(self, name: str = "") -> str:
        return f"/apis/ray.io/v1/namespaces/{self._place.namespace}/rayjobs{'/' if name else ''}{name}"

    def _kueue(self, what: str) -> str:
        return f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{self._place.namespace}/{what}"

    def _items(self, path: str, query: dict[str, str] | None = None) -> list[Object]:
        try:
            return self._ask("GET", path, query)["items"]
        except MissingError as error:
            # An empty list, too, has a kind that the server knows.
            operator = "KubeRay" if path.startswith("/apis/ray.io") else "Kueue"
            mend = f"It has none of this kind: install {operator} (ops/kubernetes/README.md). It says: {error}."
            raise ConfigError("launcher.context", self._context, mend) from error

    def _ask(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Object | None = None,
        accept: str = "application/json",
    ) -> Object:
        return json.loads(b"".join(self._parts(self._send(method, path, query or {}, body, accept))))

    def _send(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: Object | None = None,
        accept: str = "application/json",
        wait_s: float = _ANSWER_S,
    ) -> Any:
        """The server's answer, once it is known to be no refusal, and before its content was read."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json" if method == "PATCH" else "application/json"
        request = self._api.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            answer = self._api.call_api(*request, _request_timeout=(_ANSWER_S, wait_s))
        except (HTTPError, ApiException) as error:
            raise self._silence(error) from error
        if answer.status >= 300:
            content = b"".join(self._parts(answer))
            raise self._refusal(path.rsplit("/", 1)[-1], answer.status, _message(content) or str(answer.reason))
        return answer

    def _parts(self, answer: Any) -> Iterator[bytes]:
        from urllib3.exceptions import HTTPError

        try:
            yield from answer.response.stream()
        except HTTPError as error:
            raise self._silence(error) from error

    def _silence(self, error: Exception) -> StorageError:
        mend = f"Its API server does not answer: is it the right context, and is there a way to it? ({error})"
        return StorageError("Kubernetes", self._api.configuration.host, mend)

    def _refusal(self, name: str, status: int, message: str) -> Exception:
        if status == 404:
            return MissingError(message)
        if status == 409:
            return ExistsError(message)
        if status == 401:
            mend = f"The cluster does not know you: log in to it ({message})."
            return ConfigError("launcher.context", self._context, mend)
        if status == 403 and "admission webhook" not in message:
            mend = f"Have somebody grant what ops/kubernetes/tenant.yaml does: {message}."
            return ConfigError("launcher.namespace", self._place.namespace, mend)
        if 400 <= status < 500 and status != 429:
            return ConfigError("job", name, f"Kubernetes refuses it: {message}.")
        mend = f"Its API server fails, try again later: {status} {message}."
        return StorageError("Kubernetes", self._api.configuration.host, mend)


def _message(content: bytes) -> str:
    text = content.decode(errors="replace")
    try:
        return str(json.loads(text)["message"]).rstrip(". \n")
    except (ValueError, KeyError, TypeError):
        return text.strip().rstrip(".")[:300]
