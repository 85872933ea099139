"""Kubernetes manifests checked as an API server with KubeRay and Kueue checks them, without one.

The schemas are those of the real CustomResourceDefinitions. Unknown fields are problems, as with ``kubectl``'s strict
field validation. A keyword of a schema that is not understood here is an error, never a check left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cel
import yaml

Schema = dict[str, Any]

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
_CHECKED = {
    "additionalProperties", "anyOf", "enum", "format", "items", "maxItems", "maxLength", "maxProperties", "maximum",
    "minItems", "minLength", "minProperties", "minimum", "pattern", "properties", "required", "type", "nullable",
    "x-kubernetes-int-or-string", "x-kubernetes-list-map-keys", "x-kubernetes-list-type",
    "x-kubernetes-preserve-unknown-fields", "x-kubernetes-validations",
}  # fmt: skip
_SAYS_NOTHING = {"default", "description", "x-kubernetes-map-type", "x-kubernetes-embedded-resource", "example"}
_BOUNDS = {"int32": 2**31, "int64": 2**63}
_INT_OR_STRING = [{"type": "integer"}, {"type": "string"}]


class Definitions:
    """A folder of CustomResourceDefinitions, each read when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._files = {path.stem.split("_", 1)[1]: path for path in folder.glob("*.yaml")}

    def problems(self, manifest: dict[str, Any]) -> list[str]:
        """What an API server would refuse when the object is created: schema, CEL rules, names and labels.

        Raises:
            LookupError: no such kind.
        """
        schema = dict(self._schema(manifest["apiVersion"], manifest["kind"]))
        # Checked by their own rules; the schema knows no more than that metadata is an object.
        metadata = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        schema["properties"] = {**schema["properties"], "metadata": metadata}
        return [*_walk(schema, manifest, manifest["kind"]), *_metadata_problems(manifest["metadata"])]

    def knows(self, manifest: dict[str, Any]) -> bool:
        return _plural(manifest["kind"]) in self._files

    def _schema(self, api_version: str, kind: str) -> Schema:
        if _plural(kind) not in self._files:
            raise LookupError(kind)
        versions = _versions(self._files[_plural(kind)])
        return versions[api_version]


def _plural(kind: str) -> str:
    name = kind.lower()
    if name.endswith("y"):
        return name[:-1] + "ies"
    return name + ("es" if name.endswith("ss") else "s")


@cache
def _versions(path: Path) -> dict[str, Schema]:
    # The C parser takes a second for RayJob, the other one half a minute.
    spec = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]
    return {f"{spec['group']}/{one['name']}": one["schema"]["openAPIV3Schema"] for one in spec["versions"]}


def _walk(schema: Schema, value: Any, at: str) -> Iterator[str]:
    unknown = schema.keys() - _CHECKED - _SAYS_NOTHING
    assert not unknown, f"{at}: what does {unknown} of the schema mean?"
    if value is None and schema.get("nullable"):
        return
    kind = schema.get("type")
    if schema.get("x-kubernetes-int-or-string"):
        assert schema.get("anyOf", _INT_OR_STRING) == _INT_OR_STRING, at
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield f"{at}: {value!r} is neither a number nor text"
            return
    elif kind is not None and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        yield f"{at}: {value!r} is no {kind}"
        return
    yield from _value_problems(schema, value, at)
    if isinstance(value, dict):
        yield from _object_problems(schema, value, at)
    if isinstance(value, list):
        yield from _list_problems(schema, value, at)
    for rule in schema.get("x-kubernetes-validations", ()):
        # Rules on changes are not asked when an object is created.
        if "oldSelf" not in rule["rule"] and not _holds(rule["rule"], value):
            yield f"{at}: {rule.get('message', rule['rule'])}"


def _holds(rule: str, value: Any) -> bool:
    try:
        return cel.evaluate(rule, {"self": value}) is True
    except (KeyError, ValueError, TypeError, RuntimeError):
        # A field that the rule reads is not there: an API server refuses that, too.
        return False


def _value_problems(schema: Schema, value: Any, at: str) -> Iterator[str]:
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is none of {schema['enum']}"
    if (
        "pattern" in schema
        and isinstance(value, str)
        and not re.search(re.sub(r"\$$", r"\\Z", schema["pattern"]), value)
    ):
        yield f"{at}: {value!r} does not match {schema['pattern']}"
    if isinstance(value, int | float):
        if value < schema.get("minimum", value) or value > schema.get("maximum", value):
            yield f"{at}: {value} is out of bounds"
        bound = _BOUNDS.get(schema.get("format", ""))
        if bound is not None and not -bound <= value < bound:
            yield f"{at}: {value} is no {schema['format']}"
    for keyword, kind in (("Length", str), ("Items", list), ("Properties", dict)):
        if isinstance(value, kind):
            least, most = schema.get(f"min{keyword}", 0), schema.get(f"max{keyword}", len(value))
            if not least <= len(value) <= most:
                yield f"{at}: has {len(value)}, of {least} to {most}"


def _object_problems(schema: Schema, value: dict[str, Any], at: str) -> Iterator[str]:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    yield from (f"{at}.{name}: missing" for name in schema.get("required", ()) if name not in value)
    for name, inner in value.items():
        if name in properties:
            yield from _walk(properties[name], inner, f"{at}.{name}")
        elif isinstance(others, dict):
            yield from _walk(others, inner, f"{at}.{name}")
        elif not schema.get("x-kubernetes-preserve-unknown-fields"):
            yield f"{at}.{name}: unknown field"


def _list_problems(schema: Schema, value: list[Any], at: str) -> Iterator[str]:
    for number, inner in enumerate(value):
        yield from _walk(schema["items"], inner, f"{at}[{number}]")
    keys: list[Any] = []
    if schema.get("x-kubernetes-list-type") == "map":
        names = schema["x-kubernetes-list-map-keys"]
        defaults = {name: schema["items"]["properties"][name].get("default") for name in names}
        keys = [tuple(inner.get(name, defaults[name]) for name in names) for inner in value if isinstance(inner, dict)]
    elif schema.get("x-kubernetes-list-type") == "set":
        keys = value
    yield from (f"{at}: {key} is given twice" for number, key in enumerate(keys) if key in keys[:number])


_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_NAME = rf"{_LABEL}(\.{_LABEL})*"
_PART = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"


def _metadata_problems(metadata: dict[str, Any]) -> Iterator[str]:
    """The rules of kubernetes.io/docs/concepts/overview/working-with-objects, pages names, labels and annotations."""
    yield from (
        f"metadata.{name}: unknown field" for name in metadata.keys() - {"name", "namespace", "labels", "annotations"}
    )
    if not re.fullmatch(_NAME, metadata["name"]) or len(metadata["name"]) > 253:
        yield f"metadata.name: {metadata['name']!r}"
    if not re.fullmatch(_LABEL, metadata.get("namespace", "default")):
        yield f"metadata.namespace: {metadata['namespace']!r}"
    for kind in ("labels", "annotations"):
        for key, value in metadata.get(kind, {}).items():
            if not re.fullmatch(rf"({_NAME}/)?{_PART}", key):
                yield f"metadata.{kind}: {key!r} is no key"
            if not isinstance(value, str):
                yield f"metadata.{kind}.{key}: {value!r} is no text"
            elif kind == "labels" and not re.fullmatch(f"({_PART})?", value):
                yield f"metadata.labels.{key}: {value!r} is no value"


def kueue_problems(job: dict[str, Any]) -> list[str]:
    """What Kueue's webhook refuses of a RayJob, and what KubeRay's operator fails it for."""
    spec, labels = job["spec"], job["metadata"].get("labels", {})
    cluster = spec.get("rayClusterSpec")
    return [
        *_queueing_problems(spec, labels),
        *(_cluster_problems(cluster) if cluster else ["rayClusterSpec is required"]),
        *_rayjob_problems(job),
    ]


# kueue pkg/controller/constants/constants.go, and the quantity of pod sets that a Workload may have
# (apis/kueue/v1beta2/workload_types.go, spec.podSets, MaxItems).
_QUEUE, _PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
_MOST_POD_SETS = 8


def _queueing_problems(spec: dict[str, Any], labels: dict[str, str]) -> Iterator[str]:
    """kueue pkg/controller/jobs/rayjob/rayjob_webhook.go, validateCreate; jobframework/{defaults,validation}.go."""
    if not re.fullmatch(_NAME, labels.get(_QUEUE, "")):
        yield "without a queue's name Kueue leaves the job alone"
    if _PRIORITY in labels and not re.fullmatch(_NAME, labels[_PRIORITY]):
        yield "the priority class is no name"
    if spec.get("suspend") is not True:
        yield "the job would start before Kueue admits it"
    if spec.get("clusterSelector"):
        yield "a job of Kueue should not use an existing cluster"
    if spec.get("shutdownAfterJobFinishes") is not True:
        yield "a job of Kueue should delete its cluster after finishing"


def _cluster_problems(cluster: dict[str, Any]) -> Iterator[str]:
    """kueue pkg/controller/jobs/raycluster/common.go, ValidateCreate; kuberay ray-operator/controllers/ray/utils/
    validation.go, ValidateRayClusterSpec."""
    groups = cluster.get("workerGroupSpecs", [])
    if cluster.get("enableInTreeAutoscaling"):
        yield "a job of Kueue should use no autoscaling (but with elastic jobs, alpha)"
    # The head and the pod that submits are pod sets, too.
    if len(groups) + 2 > _MOST_POD_SETS:
        yield f"{len(groups)} worker groups are too many"
    names = [group["groupName"] for group in groups]
    if "head" in names or "submitter" in names:
        yield "a worker group has the name of another pod set"
    for group in groups:
        # Without autoscaling KubeRay runs `replicas`, which Kueue has admitted.
        if not group["minReplicas"] == group.get("replicas") == group["maxReplicas"]:
            yield f"group {group['groupName']} has no fixed size"
    for group in (cluster["headGroupSpec"], *groups):
        if not group["template"]["spec"].get("containers"):
            yield "a group has no container"
        if "labels" in group.get("rayStartParams", {}):
            yield "rayStartParams.labels is not supported"
    version = cluster.get("rayVersion", "0")
    if cluster.get("authOptions", {}).get("mode") == "token" and tuple(map(int, version.split("."))) < (2, 52):
        yield "tokens need Ray 2.52"


def _rayjob_problems(job: dict[str, Any]) -> Iterator[str]:
    """kuberay ray-operator/controllers/ray/utils/validation.go, ValidateRayJobMetadata and ValidateRayJobSpec."""
    name, spec = job["metadata"]["name"], job["spec"]
    if len(name) > 47 or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"{name!r} is no name of a RayJob"
    if spec.get("backoffLimit", 0) < 0 or spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "a limit is negative"
    if spec.get("activeDeadlineSeconds", 1) <= 0:
        yield "activeDeadlineSeconds must be positive"
