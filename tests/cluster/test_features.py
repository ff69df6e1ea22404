"""What a KubeRay knows is read off its CRD's schema."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sp_ray_ml.cluster._api import Api
from sp_ray_ml.cluster._features import features, features_of
from sp_ray_ml.errors import KubernetesError


def schema(*paths: str) -> dict[str, Any]:
    """A RayCluster's schema that has these fields below `spec`."""
    spec: dict[str, Any] = {"properties": {}}
    for path in paths:
        node = spec
        for name in path.split("."):
            inner = node.get("items", node)
            node = inner.setdefault("properties", {}).setdefault(
                name, {"items": {}} if name == "workerGroupSpecs" else {}
            )
    kinds = [{"group": "ray.io", "version": "v1", "kind": "RayCluster"}]
    return {"properties": {"spec": spec}, "x-kubernetes-group-version-kind": kinds}


V14 = ("autoscalerOptions.version", "workerGroupSpecs.groupName")


@pytest.mark.parametrize(
    ("more", "version", "auth"),
    [
        ((), "1.4", False),
        (("workerGroupSpecs.labels",), "1.5", False),
        (("workerGroupSpecs.labels", "authOptions.mode"), "1.5.1", True),
        (("authOptions.mode", "upgradeStrategy.type"), "1.6", True),
        (("authOptions.mode", "upgradeStrategy.type", "workerGroupSpecs.priority"), "1.7", True),
    ],
)
def test_version_is_told_by_the_fields_that_came_with_it(
    more: tuple[str, ...], version: str, auth: bool
) -> None:
    found = features_of(schema(*V14, *more))
    assert (found.version, found.auth_options) == (version, auth)


def test_a_crd_from_before_1_4_is_refused_by_name() -> None:
    with pytest.raises(KubernetesError, match=r"too old.*1\.4.*helm upgrade"):
        features_of(schema("workerGroupSpecs.groupName", "autoscalerOptions.image"))


@contextmanager
def api_server(folder: Path, answers: dict[str, tuple[int, Any]]) -> Iterator[Api]:
    """An API server that has these answers, and 404 for all else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            missing = {"kind": "Status", "reason": "NotFound", "message": "not found"}
            status, body = answers.get(self.path, (404, missing))
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
    }  # fmt: skip
    file = folder / "kubeconfig"
    file.write_text(json.dumps(config))
    try:
        with Api(file) as api:
            yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_features_are_asked_from_the_api_server(tmp_path: Path) -> None:
    document = {
        "components": {"schemas": {"other": {}, "io.ray.v1.RayCluster": schema(*V14, "authOptions.mode")}}
    }
    with api_server(tmp_path, {"/openapi/v3/apis/ray.io/v1": (200, document)}) as api:
        assert features(api).auth_options


def test_where_the_schema_may_not_be_read_the_newest_is_taken_for_granted(tmp_path: Path) -> None:
    refusal = {"kind": "Status", "reason": "Forbidden", "message": 'User "x" cannot get path'}
    with api_server(tmp_path, {"/openapi/v3/apis/ray.io/v1": (403, refusal)}) as api:
        found = features(api)
    assert found.version is None
    assert found.auth_options


def test_no_kuberay_is_said_with_the_way_to_get_it(tmp_path: Path) -> None:
    with api_server(tmp_path, {}) as api:
        with pytest.raises(KubernetesError, match=r"does not know RayClusters.*helm install"):
            features(api)


def test_kuberay_with_its_first_api_version_only_is_too_old(tmp_path: Path) -> None:
    group = {"kind": "APIGroup", "name": "ray.io", "versions": [{"version": "v1alpha1"}]}
    with api_server(tmp_path, {"/apis/ray.io": (200, group)}) as api:
        with pytest.raises(KubernetesError, match=r"too old.*v1alpha1 only"):
            features(api)
