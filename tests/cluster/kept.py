"""An API server that keeps what it is given, in memory, behind the client's own verbs."""

from __future__ import annotations

import copy
import json
import re
import threading
from typing import Any

from sp_ray_ml.cluster import _kinds
from sp_ray_ml.cluster._api import Api
from sp_ray_ml.cluster._kinds import Kind, kind_of
from sp_ray_ml.errors import ClusterNotFoundError, KubernetesError

__all__ = ["Kept"]

Body = dict[str, Any]
PLURALS = {value.plural for value in vars(_kinds).values() if isinstance(value, Kind)}


class Kept(Api):
    """Objects by their paths: listed by label, patched at a version, deleted at one. An apply is a merge here.

    Attributes:
        objects: What is kept.
        answers: What is answered at other paths.
        fails: Errors that are raised at paths.
        asked: How many requests came in.
    """

    def __init__(self, *bodies: Body) -> None:
        self.context, self.namespace = "", "default"
        self.objects: dict[str, Body] = {}
        self.answers: dict[str, Body] = {}
        self.fails: dict[str, Exception] = {}
        self.asked = 0
        self._version, self._lock = 0, threading.RLock()
        for body in bodies:
            self.put(body)

    def put(self, body: Body) -> Body:
        """Keep an object."""
        meta = body["metadata"]
        with self._lock:
            return self._keep(kind_of(body).path(meta.get("namespace"), meta["name"]), body)

    def close(self) -> None:
        pass

    def request(self, method: str, path: str, **more: Any) -> bytes:
        return json.dumps(self.json(method, path, **more)).encode()

    def json(self, method: str, path: str, *, query: Any = None, body: Any = None, headers: Any = None, repeat: bool = True) -> Body:  # fmt: skip
        query = query or {}
        with self._lock:
            self.asked += 1
            if path in self.fails:
                raise self.fails[path]
            if path.endswith("selfsubjectreviews"):
                return {"status": {"userInfo": {"username": "ada"}}}
            if path.endswith("selfsubjectaccessreviews"):
                return {"status": {"allowed": True}}
            if path in self.answers:
                return self.answers[path]
            found = getattr(self, f"_{method.lower()}")(path, query, copy.deepcopy(body))
            return copy.deepcopy(found)

    def _get(self, path: str, query: Any, _: Any) -> Body:
        if path.rpartition("/")[2] not in PLURALS:
            return self._there(path)
        base, _, plural = path.rpartition("/")
        pattern = re.compile(rf"{re.escape(base)}(/namespaces/[^/]+)?/{plural}/[^/]+")
        wanted = query.get("labelSelector")
        items = [
            each for at, each in self.objects.items() if pattern.fullmatch(at) and _labelled(each, wanted)
        ]
        return {"metadata": {"resourceVersion": str(self._version)}, "items": items}

    def _post(self, path: str, query: Any, body: Body) -> Body:
        meta = body["metadata"]
        at = f"{path}/{meta.get('name') or meta['generateName']}"
        if at in self.objects:
            raise KubernetesError("it is there already", status=409, reason="AlreadyExists")
        return body if query.get("dryRun") else self._keep(at, body)

    def _patch(self, path: str, query: Any, body: Any) -> Body:
        old = copy.deepcopy(self.objects.get(path))
        if isinstance(body, list):
            for each in body:
                *way, last = [int(key) if key.isdigit() else key for key in each["path"].split("/")[1:]]
                at: Any = old
                for key in way:
                    at = at[key]
                if each["op"] == "test":
                    assert at[last] == each["value"]
                else:
                    at[last] = each["value"]
            return self._keep(path, old)
        if old is None:
            if "apiVersion" not in body:
                raise ClusterNotFoundError(f"not there: {path}")
            old = {}
        version = body.get("metadata", {}).pop("resourceVersion", None)
        if version and version != old["metadata"]["resourceVersion"]:
            raise KubernetesError("the object has been modified", status=409, reason="Conflict")
        new = _merged(old, body)
        return new if query.get("dryRun") else self._keep(path, new)

    def _delete(self, path: str, _: Any, body: Body) -> Body:
        there = self._there(path)["metadata"]
        wanted = body.get("preconditions") or {}
        if any(there[key] != value for key, value in wanted.items()):
            raise KubernetesError("the precondition is not met", status=409, reason="Conflict")
        if not body.get("dryRun"):
            del self.objects[path]
            name = path.partition("/api/v1/namespaces/")[2]
            for at in [at for at in self.objects if name and f"/namespaces/{name}/" in at]:
                del self.objects[at]
        return {}

    def _there(self, path: str) -> Body:
        if path not in self.objects:
            raise ClusterNotFoundError(f"not there: {path}")
        return self.objects[path]

    def _keep(self, path: str, body: Body) -> Body:
        self._version += 1
        meta = {"uid": f"{self._version:08}-aaaa", **body["metadata"], "resourceVersion": str(self._version)}
        self.objects[path] = copy.deepcopy({**body, "metadata": meta})
        return self.objects[path]


def _labelled(body: Body, selector: str | None) -> bool:
    labels = body["metadata"].get("labels") or {}
    key, said, value = (selector or "").partition("=")
    return not selector or (labels.get(key) == value if said else key in labels)


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(new, dict):
        return new
    found = dict(old) if isinstance(old, dict) else {}
    for key, value in new.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = _merged(found.get(key), value)
    return found
