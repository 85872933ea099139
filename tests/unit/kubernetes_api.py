"""A server of the Kubernetes API's relevant part, in memory: what a client may send and see is as in the real one.

It refuses what the real definitions of KubeRay refuse, keeps nothing of a dry run, and knows namespaces, rights and
deletions in the foreground. Controllers there are none: a test plays KubeRay and Kueue by changing objects.
"""

from __future__ import annotations

import copy
import json
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.crd_validation import Definitions, kueue_problems

Object = dict[str, Any]

RAY_JOBS, WORKLOADS = "ray.io/v1/rayjobs", "kueue.x-k8s.io/v1beta2/workloads"
LOCAL_QUEUES, CLASSES = "kueue.x-k8s.io/v1beta2/localqueues", "kueue.x-k8s.io/v1beta2/workloadpriorityclasses"
_KINDS = [RAY_JOBS, WORKLOADS, LOCAL_QUEUES, CLASSES, "v1/pods", "v1/secrets", "v1/serviceaccounts"]
TOKEN = "a-token-of-this-test"


class KubernetesApi:
    """
    Attributes:
        objects: of each kind, by name; all in one namespace.
        forbidden: (verb, plural) that the caller may not.
        fails: HTTP status of every answer, where not None.
        requests: (method, path with query), as they came.
        logs: of pods, (seconds after noon, line) each.
        keeps_deleted: deleted RayJobs stay, marked, as long as what they own.
    """

    def __init__(self, definitions: Definitions, namespace: str = "survey") -> None:
        self.namespace, self.definitions = namespace, definitions
        self.objects: dict[str, dict[str, Object]] = {kind: {} for kind in [*_KINDS, "v1/persistentvolumeclaims"]}
        self.forbidden: set[tuple[str, str]] = set()
        self.fails: int | None = None
        self.requests: list[tuple[str, str]] = []
        self.logs: dict[str, list[tuple[float, str]]] = {}
        self.keeps_deleted = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def write_kubeconfig(self, path: Path, token: str = TOKEN) -> None:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "site",
            "clusters": [{"name": "site", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [{"name": "site", "context": {"cluster": "site", "user": "me"}}],
        }
        path.write_text(yaml.safe_dump(config))

    def add(self, kind: str, name: str, /, **content: Any) -> Object:
        metadata = {
            "name": name,
            "namespace": self.namespace,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": f"2026-11-22T12:00:{len(self.objects[kind]):02d}Z",
            **content.pop("metadata", {}),
        }
        self.objects[kind][name] = {"metadata": metadata, **content}
        return self.objects[kind][name]

    def create(self, kind: str, body: Object, dry_run: bool, strict: bool) -> Object:
        """
        Raises:
            RefusalError
        """
        name = body["metadata"]["name"]
        problems = self.definitions.problems(body)
        if problems and strict:
            raise RefusalError(422, "Invalid", f'RayJob.ray.io "{name}" is invalid: {"; ".join(problems)}')
        if denied := kueue_problems(body):
            message = f'admission webhook "vrayjob.kb.io" denied the request: {"; ".join(denied)}'
            raise RefusalError(403, "Forbidden", message)
        if name in self.objects[kind]:
            raise RefusalError(409, "AlreadyExists", f'rayjobs.ray.io "{name}" already exists')
        created = copy.deepcopy(body)
        return created if dry_run else self.add(kind, name, **created)

    def delete(self, kind: str, name: str, foreground: bool) -> None:
        if foreground and self.keeps_deleted:
            self.objects[kind][name]["metadata"]["deletionTimestamp"] = "2026-11-22T13:00:00Z"
        else:
            del self.objects[kind][name]


class RefusalError(Exception):
    """An answer that is no object."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        self.status = status
        self.body = {"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": status}
        super().__init__(message)


class _Handler(BaseHTTPRequestHandler):
    api: KubernetesApi
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._handle("get")

    def do_POST(self) -> None:
        self._handle("create")

    def do_PATCH(self) -> None:
        self._handle("patch")

    def do_DELETE(self) -> None:
        self._handle("delete")

    def _handle(self, verb: str) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        self.api.requests.append((self.command, self.path))
        try:
            answer: Any = self._answer(verb, body)
            status = 200
        except RefusalError as error:
            answer, status = error.body, error.status
        if isinstance(answer, list):
            self._stream(answer)
            return
        content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, verb: str, body: Object) -> Any:
        api = self.api
        if api.fails is not None:
            raise RefusalError(api.fails, "InternalError", "etcdserver: request timed out")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise RefusalError(401, "Unauthorized", "Unauthorized")
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        kind, namespace, name, *rest = self._parts(url.path)
        plural = kind.rsplit("/", 1)[-1]
        if verb == "get" and not name:
            verb = "list"
        if (verb, plural) in api.forbidden:
            message = (
                f'{plural} is forbidden: User "me" cannot {verb} resource "{plural}" in the namespace "{namespace}"'
            )
            raise RefusalError(403, "Forbidden", message)
        if kind not in api.objects:
            raise RefusalError(404, "NotFound", "the server could not find the requested resource")
        if verb == "create":
            if namespace != api.namespace:
                raise RefusalError(404, "NotFound", f'namespaces "{namespace}" not found')
            return api.create(kind, body, query.get("dryRun") == "All", query.get("fieldValidation") == "Strict")
        there = api.objects[kind] if namespace in (api.namespace, "") else {}
        if verb == "list":
            return {"items": [one for one in there.values() if _is_meant(one, query.get("labelSelector", ""))]}
        if name not in there:
            raise RefusalError(404, "NotFound", f'{plural} "{name}" not found')
        if rest == ["log"]:
            return _log(api.logs[name], query)
        if verb == "patch":
            assert self.headers["Content-Type"] == "application/merge-patch+json"
            there[name]["spec"].update(body["spec"])
        if verb == "delete":
            api.delete(kind, name, query.get("propagationPolicy") == "Foreground")
            return {"kind": "Status", "status": "Success"}
        if "as=PartialObjectMetadata" in self.headers["Accept"]:
            return {"kind": "PartialObjectMetadata", "metadata": there[name]["metadata"]}
        return there[name]

    @staticmethod
    def _parts(path: str) -> tuple[str, ...]:
        """Kind, namespace, name, what is below."""
        root, *parts = path.strip("/").split("/")
        group = [parts.pop(0)] if root == "api" else [parts.pop(0), parts.pop(0)]
        namespace = ""
        if parts[0] == "namespaces":
            namespace = parts[1]
            parts = parts[2:]
        plural, name, *rest = [*parts, ""] if len(parts) == 1 else parts
        return ("/".join([*group, plural]), namespace, name, *rest)

    def _stream(self, parts: list[bytes]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in parts:
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *arguments: Any) -> None:
        """The tests look at ``requests``."""


def _log(lines: list[tuple[float, str]], query: dict[str, str]) -> list[bytes]:
    """In parts that know nothing of lines, nor of characters."""
    assert query["timestamps"] == "true"
    since = query.get("sinceTime", "").split(".")[0]
    stamped = [(f"2026-11-22T12:00:{seconds:012.9f}Z", line) for seconds, line in lines]
    content = "".join(f"{when} {line}\n" for when, line in stamped if when.split(".")[0] >= since).encode()
    return [content[start : start + 7] for start in range(0, len(content), 7)]


def _is_meant(one: Object, selector: str) -> bool:
    labels = one["metadata"].get("labels", {})
    return all(labels.get(key) in values for key, values in _wanted(selector))


def _wanted(selector: str) -> Iterator[tuple[str, list[str]]]:
    if " in (" in selector:
        key, values = selector.rstrip(")").split(" in (")
        yield key, values.split(",")
    else:
        for pair in filter(None, selector.split(",")):
            key, value = pair.split("=")
            yield key, [value]
