"""The fields of a RayCluster in short form: from the schema that an API server publishes, or as kept here for KubeRay 1.7.

A node is a word for a value (`text`, `whole`, `number`, `flag`, `quantity`, `either`: text or whole, `any`), or
`{"fields": {…}, "required": […]}`, `{"map": node}`, `{"list": node}`, `{"one of": […]}`, or a number: the node of that
number among the shared ones, as pods and containers occur many times.

`python -m sp_ray_ml.cluster._fields OPENAPI.json` writes the kept ones anew, from `/openapi/v3/apis/ray.io/v1`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["KEPT_VERSION", "Fields", "fields_of", "kept_fields"]

Node = Any
KEPT_VERSION = "1.7"
_FILE = Path(__file__).with_name("ray_cluster_fields.json")
_WORDS = {"string": "text", "integer": "whole", "number": "number", "boolean": "flag"}
_META = {
    "name": "text", "generateName": "text", "namespace": "text", "labels": {"map": "text"},
    "annotations": {"map": "text"}, "finalizers": {"list": "text"}, "ownerReferences": {"list": "any"},
}  # fmt: skip


class Fields:
    """The fields of a RayCluster.

    Args:
        top: Node of the whole object.
        shared: Nodes that others refer to by number.
    """

    def __init__(self, top: Node, shared: list[Node]) -> None:
        self.top = top
        self._shared = shared

    def node(self, node: Node) -> Node:
        """The node itself, where it may be the number of one."""
        return self._shared[node] if isinstance(node, int) else node


def fields_of(schema: Mapping[str, Any]) -> Fields:
    """The fields that an OpenAPI schema of a RayCluster has."""
    return Fields(_top(_short(schema["properties"]["spec"])), [])


def _top(spec: Node) -> Node:
    return {
        "fields": {
            "apiVersion": "text", "kind": "text", "metadata": {"fields": _META, "required": []}, "spec": spec,
            "status": "any",
        },
        "required": ["metadata", "spec"],
    }  # fmt: skip


def _short(schema: Mapping[str, Any]) -> Node:
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity" if "pattern" in schema else "either"
    if values := schema.get("enum"):
        return {"one of": list(values)}
    kind = schema.get("type")
    if kind == "array":
        return {"list": _short(schema["items"])}
    if properties := schema.get("properties"):
        return {
            "fields": {name: _short(each) for name, each in properties.items()},
            # What has a default need not be said.
            "required": [name for name in schema.get("required") or () if "default" not in properties[name]],
        }
    if isinstance(inner := schema.get("additionalProperties"), Mapping):
        return {"map": _short(inner)}
    return _WORDS.get(str(kind), "any")


@cache
def kept_fields() -> Fields:
    """The fields of KubeRay 1.7's RayCluster, for where no API server can be asked."""
    kept = json.loads(_FILE.read_text(encoding="utf-8"))
    return Fields(_top(kept["spec"]), kept["shared"])


def _share(node: Node) -> dict[str, Any]:
    """A node with what occurs several times in it written once."""
    seen: Counter[str] = Counter()

    def count(each: Node) -> None:
        if isinstance(each, dict):
            text = json.dumps(each, sort_keys=True)
            seen[text] += 1
            if seen[text] == 1:
                for inner in (*each.get("fields", {}).values(), each.get("map"), each.get("list")):
                    count(inner)

    count(node)
    numbers: dict[str, int] = {}
    shared: list[Node] = []

    def refer(each: Node) -> Node:
        if not isinstance(each, dict) or "one of" in each:
            return each
        text = json.dumps(each, sort_keys=True)
        if text in numbers:
            return numbers[text]
        found: dict[str, Any] = {}
        if "fields" in each:
            found = {
                "fields": {name: refer(inner) for name, inner in each["fields"].items()},
                "required": each["required"],
            }
        for key in ("map", "list"):
            if key in each:
                found[key] = refer(each[key])
        if seen[text] > 1 and len(text) > 60:
            numbers[text] = len(shared)
            shared.append(found)
            return numbers[text]
        return found

    return {"spec": refer(node), "shared": shared}


def _write(source: Path) -> None:
    document = json.loads(source.read_text(encoding="utf-8"))
    schema = document["components"]["schemas"]["io.ray.v1.RayCluster"]
    kept = _share(_short(schema["properties"]["spec"]))
    _FILE.write_text(json.dumps(kept, separators=(",", ":"), sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    import sys

    _write(Path(sys.argv[1]))
