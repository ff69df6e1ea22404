"""What a request becomes on clusters of every age and right: tokens by hand, safe defaults for what may not be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sp_ray_ml.cluster._prepare import prepare
from sp_ray_ml.cluster._same_request import differences
from sp_ray_ml.cluster.settings import ClusterSettings
from sp_ray_ml.errors import ClusterUnhealthyError

from .test_features import V14, api_server, schema

FORBIDDEN = {
    "kind": "Status",
    "reason": "Forbidden",
    "message": 'User "x" cannot list resource',
    "details": {},
}
OPENAPI = "/openapi/v3/apis/ray.io/v1"
OPERATORS = "/apis/apps/v1/deployments?labelSelector=app.kubernetes.io%2Fname%3Dkuberay-operator&limit=250"
NOTHING_MAY_BE_READ: dict[str, tuple[int, Any]] = {
    OPERATORS: (403, FORBIDDEN),
    "/api/v1/namespaces/default/services/kubernetes": (403, FORBIDDEN),
    "/apis/storage.k8s.io/v1/storageclasses?limit=250": (403, FORBIDDEN),
}


def known_to(*fields: str) -> dict[str, tuple[int, Any]]:
    """Answers of an operator that knows these fields."""
    return {**NOTHING_MAY_BE_READ, OPENAPI: (200, {"components": {"schemas": {"c": schema(*V14, *fields)}}})}


def request(tmp_path: Path, answers: dict[str, tuple[int, Any]], **settings: Any) -> Any:
    with api_server(tmp_path, answers) as api:
        return prepare(api, ClusterSettings(name="mine", image="rayproject/ray:2.60.0-py311", **settings))


def test_before_1_5_1_the_token_is_made_by_us(tmp_path: Path) -> None:
    made = request(tmp_path, known_to("workerGroupSpecs.labels"))
    assert "authOptions" not in made.cluster["spec"]
    (secret,) = [each for each in made.companions if each["kind"] == "Secret"]
    assert secret["metadata"]["name"] == "mine"
    assert len(secret["stringData"]["auth_token"]) >= 32
    container = made.cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {"name": "RAY_AUTH_MODE", "value": "token"} in container["env"]
    assert secret["stringData"]["auth_token"] not in json.dumps(made.objects())


def test_from_1_5_1_on_the_operator_makes_the_token(tmp_path: Path) -> None:
    made = request(tmp_path, known_to("authOptions.mode"))
    assert made.cluster["spec"]["authOptions"] == {"mode": "token"}
    assert not [each for each in made.companions if each["kind"] == "Secret"]


def test_what_may_not_be_read_gets_a_safe_default(tmp_path: Path) -> None:
    made = request(tmp_path, known_to("authOptions.mode"), vscode_server=True)
    (policy,) = [each for each in made.companions if each["kind"] == "NetworkPolicy"]
    ports = {port["port"] for rule in policy["spec"]["egress"] for port in rule.get("ports", ())}
    assert {443, 6443} <= ports  # the API server is reached, wherever it is
    operators = policy["spec"]["ingress"][1]["from"][0]["namespaceSelector"]["matchExpressions"][0]["values"]
    assert "kuberay-system" in operators
    assert [each for each in made.companions if each["kind"] == "PersistentVolumeClaim"]  # it is tried


def test_a_ray_without_tokens_is_refused_unless_insecure(tmp_path: Path) -> None:
    with pytest.raises(ClusterUnhealthyError, match=r"2\.9\.3 has no token authentication.*--insecure"):
        with api_server(tmp_path, known_to("authOptions.mode")) as api:
            prepare(api, ClusterSettings(name="mine", image="rayproject/ray:2.9.3"))
    with api_server(tmp_path, known_to("authOptions.mode")) as api:
        made = prepare(api, ClusterSettings(name="mine", image="rayproject/ray:2.9.3", insecure=True))
    assert any("insecure" in note for note in made.notes)


def test_the_same_words_are_the_same_request_also_to_a_later_version(tmp_path: Path) -> None:
    made = request(tmp_path, known_to("authOptions.mode"), env={"A": "b"})
    existing = json.loads(json.dumps(made.cluster))
    existing["spec"]["workerGroupSpecs"][0]["replicas"] = 7  # scaled since
    assert differences(existing, made.cluster) == []
    key = "sp-ray/asked"
    record = json.loads(existing["metadata"]["annotations"][key])
    del record["settings"]["egress"]  # as an earlier version would have written it, without this setting
    existing["metadata"]["annotations"][key] = json.dumps(record)
    assert differences(existing, made.cluster) == []
    other = request(tmp_path, known_to("authOptions.mode"), env={"A": "c"}, workers=[{"replicas": 2}])
    assert differences(existing, other.cluster) == [
        "environment variables differ", "workers.worker.replicas: 1 there, 2 asked for",
    ]  # fmt: skip
    del existing["metadata"]["annotations"][key]
    assert differences(existing, other.cluster) == ["it was not made by sp-ray"]
