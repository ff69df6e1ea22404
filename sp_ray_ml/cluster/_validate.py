"""Files that say what a cluster is to be: a full RayCluster manifest or our short YAML, every mistake named at once."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sp_ray_ml._document import Document, read_document
from sp_ray_ml._names import KeyPath, near_match
from sp_ray_ml.cluster._fields import Fields, fields_of, kept_fields
from sp_ray_ml.cluster._kinds import RAY_CLUSTER
from sp_ray_ml.cluster._quantity import parse_quantity
from sp_ray_ml.errors import ClusterNotFoundError, ConfigError

if TYPE_CHECKING:
    from sp_ray_ml.cluster.settings import ClusterSettings

__all__ = ["check_manifest", "find_worker_group", "read_file", "read_manifest"]

Body = dict[str, Any]

_HINT = "It is a RayCluster manifest, or the settings of one: name, head, workers; see docs/clusters.md"
_SERVERS_OWN = (
    "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink", "deletionTimestamp",
    "deletionGracePeriodSeconds",
)  # fmt: skip
"""What `kubectl get -o yaml` has of the server, and says nothing of what a cluster is to be."""
_MARKS = ("apiVersion", "kind", "metadata", "spec")
_EXPECTED = {
    "text": "text", "whole": "a whole number", "number": "a number", "flag": "true or false",
    "either": "text or a whole number",
}  # fmt: skip


def read_file(
    path: str | os.PathLike[str], name: str | None = None, namespace: str | None = None
) -> tuple[ClusterSettings, Body | None]:
    """Read a file for `--file`.

    Args:
        path: A full RayCluster manifest, or settings in our short YAML.
        name: The cluster's name, where it is not to be the file's.
        namespace: Its namespace, likewise.

    Returns:
        The settings, and for a full manifest that manifest: the settings are then those beside its spec.

    Raises:
        ConfigError: With every mistake, each with its line.
    """
    from sp_ray_ml.cluster.settings import ClusterSettings
    from sp_ray_ml.config import check

    document = _read(path, variables=False)
    if not any(mark in document.data for mark in _MARKS):
        document = _read(path, variables=True)
        for key, value in (("name", name), ("namespace", namespace)):
            if value:
                document.replace((key,))
                document.data[key] = value
        return check(ClusterSettings, document), None
    manifest = _manifest(document)
    for key, value in (("name", name), ("namespace", namespace)):
        if value and isinstance(manifest.get("metadata", {}), dict):
            manifest.setdefault("metadata", {})[key] = value
            document.replace(("metadata", key))
    check_manifest(manifest, document=document)
    meta = manifest["metadata"]
    return ClusterSettings(name=meta["name"], namespace=meta.get("namespace")), manifest


def read_manifest(path: str | os.PathLike[str]) -> Body:
    """Read and check a full RayCluster manifest.

    Raises:
        ConfigError: With every mistake, each with its line.
    """
    document = _read(path, variables=False)
    manifest = _manifest(document)
    check_manifest(manifest, document=document)
    return manifest


def _read(path: str | os.PathLike[str], *, variables: bool) -> Document:
    try:
        return read_document(os.fspath(path), variables=variables)
    except ConfigError as error:
        error.hint = _HINT
        raise


def _manifest(document: Document) -> Body:
    """The RayCluster in a document, without what is the server's own.

    Raises:
        ConfigError: It is something else, or cannot be read.
    """
    data = document.data
    if document.problems:
        raise ConfigError(
            "the manifest cannot be read", problems=tuple(problem for _, problem in document.problems)
        )
    version, kind = data.get("apiVersion"), data.get("kind")
    if kind != RAY_CLUSTER.name:
        instead = {
            "RayJob": "; its spec.rayClusterSpec is one",
            "RayService": "; its spec.rayClusterConfig is one",
        }
        raise _refused(
            document,
            "kind",
            f"expected RayCluster, got {kind or 'nothing'}{instead.get(str(kind), '')}{_near_kind(kind)}",
        )
    if version != RAY_CLUSTER.api_version:
        why = f"expected {RAY_CLUSTER.api_version}, got {version or 'nothing'}"
        if version == "ray.io/v1alpha1":
            why = f"ray.io/v1alpha1 is gone: write apiVersion: {RAY_CLUSTER.api_version}, the fields are the same"
        raise _refused(document, "apiVersion", why)
    manifest = {key: value for key, value in data.items() if key != "status"}
    if isinstance(data.get("metadata"), dict):
        manifest["metadata"] = {
            key: value for key, value in data["metadata"].items() if key not in _SERVERS_OWN
        }
    return manifest


def _near_kind(kind: Any) -> str:
    return near_match(str(kind), [RAY_CLUSTER.name]) if kind not in {"RayJob", "RayService"} else ""


def _refused(document: Document, key: str, message: str) -> ConfigError:
    return ConfigError("no RayCluster", problems=(document.problem((key,), message),), hint=_HINT)


# --- the manifest -------------------------------------------------------------------------------------------------


def check_manifest(
    manifest: Body, *, document: Document | None = None, schema: Mapping[str, Any] | None = None
) -> None:
    """Check a RayCluster as the API server, the operator and the pods' admission would, all at once.

    Args:
        manifest: The RayCluster.
        document: Where it came from, for the lines.
        schema: OpenAPI schema of the RayCluster that is served (`Features.schema`); KubeRay 1.7's without.

    Raises:
        ConfigError: With every mistake, in the order of the file.
    """
    from sp_ray_ml.cluster._manifest_rules import broken_rules

    fields = fields_of(schema) if schema is not None else kept_fields()
    found = list(_check(manifest, fields.top, (), fields))
    sound = _without(manifest, [path for path, _ in found])
    named = {path for path, _ in found}
    found += [(path, message) for path, message in broken_rules(sound) if path not in named]
    if not found:
        return
    known = document or Document(data={})
    problems = [known.problem(path, message) for path, message in found]
    unique = sorted(dict.fromkeys(problems), key=lambda problem: problem.line or 0)
    count = f"{len(unique)} mistakes" if len(unique) > 1 else "1 mistake"
    raise ConfigError(f"{known.file or 'the RayCluster'} has {count}", problems=tuple(unique))


def _without(manifest: Body, paths: Sequence[KeyPath]) -> Body:
    """A manifest without what is at these paths; a list without one of its parts is left out as a whole."""
    if not paths:
        return manifest
    result = copy.deepcopy(manifest)
    for path in paths:
        while path and isinstance(path[-1], int):
            path = path[:-1]  # noqa: PLW2901
        holder: Any = result
        for key in path[:-1]:
            inside = isinstance(holder, list) and isinstance(key, int) and key < len(holder)
            holder = holder[key] if inside else holder.get(key) if isinstance(holder, dict) else None
        if path and isinstance(holder, dict):
            holder[path[-1]] = None
    return result


def _check(value: Any, node: Any, path: KeyPath, fields: Fields) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with a value by its node: path and message."""
    node = fields.node(node)
    if value is None and path and not (isinstance(node, dict) and node.get("required")):
        return  # as if it were not there
    if isinstance(node, str):
        if problem := _scalar(value, node):
            yield path, problem
    elif "one of" in node:
        if value not in node["one of"]:
            near = near_match(str(value), node["one of"])
            yield path, f"expected {' or '.join(map(str, node['one of']))}, got {value}{near}"
    elif "list" in node:
        if not isinstance(value, list):
            yield path, f"expected a list, got {_shown(value)}"
            return
        for index, each in enumerate(value):
            if each is None:
                yield (*path, index), "is empty"
            yield from _check(each, node["list"], (*path, index), fields)
    elif not isinstance(value, Mapping):
        yield path, f"expected a mapping (key: value), got {_shown(value)}"
    elif "map" in node:
        for key, each in value.items():
            yield from _check(each, node["map"], (*path, key), fields)
    else:
        for key in node["required"]:
            if value.get(key) is None:
                yield (*path, key), "required"
        for key, each in value.items():
            if key not in node["fields"]:
                yield (*path, key), f"unknown{near_match(key, node['fields'])}"
            else:
                yield from _check(each, node["fields"][key], (*path, key), fields)


def _scalar(value: Any, word: str) -> str | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if word == "quantity":
        try:
            parse_quantity(value if number or isinstance(value, str) else str(value))
        except ValueError as error:
            return str(error)
        return None
    right = {
        "text": isinstance(value, str), "whole": number and value == int(value), "number": number,
        "flag": isinstance(value, bool), "either": isinstance(value, str) or (number and value == int(value)),
        "any": True,
    }  # fmt: skip
    if right[word]:
        return None
    quotes = ": put it in quotes" if word == "text" and isinstance(value, int | float) else ""
    return f"expected {_EXPECTED[word]}, got {_shown(value)}{quotes}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else repr(value) if isinstance(value, str) else str(value).lower()


def find_worker_group(manifest: Mapping[str, Any], name: str, *, where: str | None = None) -> int:
    """Position of a worker group in a RayCluster.

    Raises:
        ClusterNotFoundError: There is none of this name; the message has the near match.
    """
    names = [group["groupName"] for group in manifest["spec"].get("workerGroupSpecs") or ()]
    if name not in names:
        raise ClusterNotFoundError(
            f"there is no worker group {name}{near_match(name, names)}", where=where,
            hint=f"There {'is' if len(names) == 1 else 'are'}: {', '.join(names) or 'none'}",
        )  # fmt: skip
    return names.index(name)
