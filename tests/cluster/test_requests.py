"""What a cluster asks for, counted as the scheduler and quotas count it."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sp_ray_ml.cluster._pod_resources import pod_resources
from sp_ray_ml.cluster._requests import cluster_request, pod_body

RECORDINGS = Path(__file__).parents[1] / "kubernetes" / "recordings"
GIB = 2**30


def recorded(name: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The RayCluster that a recording creates, and the first pod of each type that the operator made for it."""
    manifest, pods = None, {}
    with gzip.open(RECORDINGS / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in map(json.loads, file):
            if manifest is None and "manifest" in line:
                manifest = line["manifest"]
            item = line.get("object") or {}
            if item.get("kind") == "Pod":
                pods.setdefault(item["metadata"]["labels"]["ray.io/node-type"], item)
    assert manifest is not None
    return manifest, pods


@pytest.mark.parametrize(
    "name",
    ["01-ready", "16-autoscaling-v1", "16c-autoscaling-v2", "17-auth-token", "22-multihost", "18-gcs-ft"],
)
def test_each_pod_asks_for_what_the_operators_pod_asks_for(name: str) -> None:
    manifest, pods = recorded(name)
    request = cluster_request(manifest)
    for group in request.groups:
        made = pods["worker" if group.name else "head"]["spec"]
        assert {k: v for k, v in group.requests.items() if k != "pods"} == pod_resources(made)
        assert group.limits == pod_resources(made, "limits")
        names = [c["name"] for key in ("initContainers", "containers") for c in group.spec.get(key) or ()]
        assert names == [c["name"] for key in ("initContainers", "containers") for c in made.get(key) or ()]


def template(name: str, cpu: str, memory: str, **more: Any) -> dict[str, Any]:
    resources = {"limits": {"cpu": cpu, "memory": memory}}
    return {"spec": {"containers": [{"name": name, "image": "ray", "resources": resources}], **more}}


def manifest(*groups: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "c", "namespace": "n"},
        "spec": {
            "rayVersion": "2.60.0", "headGroupSpec": {"template": template("ray-head", "2", "4Gi")},
            "workerGroupSpecs": list(groups), **spec,
        },
    }  # fmt: skip


def group(name: str = "w", replicas: int | None = 2, most: int = 5, **more: Any) -> dict[str, Any]:
    found = {"groupName": name, "minReplicas": 0, "maxReplicas": most,
             "template": template("ray-worker", "1", "2Gi"), **more}  # fmt: skip
    return found if replicas is None else {**found, "replicas": replicas}


def test_total_is_the_sum_of_all_pods() -> None:
    request = cluster_request(manifest(group("a", 2), group("b", 3)))
    assert request.total() == {"cpu": Decimal(7), "memory": Decimal(14 * GIB), "pods": Decimal(6)}
    assert request.pods() == request.pods(most=True) == 6


def test_sidecar_of_autoscaling_adds_to_the_head_and_most_is_counted() -> None:
    request = cluster_request(manifest(group("a", 2, 4), enableInTreeAutoscaling=True))
    assert request.groups[0].requests["cpu"] == Decimal("2.5")
    assert request.groups[0].requests["memory"] == 4 * GIB + 2**29
    assert (request.pods(), request.pods(most=True)) == (3, 5)
    most = request.total(most=True)
    assert most is not None
    assert most["cpu"] == Decimal("6.5")


def test_autoscaler_options_replace_the_sidecars_resources() -> None:
    given = {"limits": {"cpu": "1", "memory": "1Gi"}}
    request = cluster_request(
        manifest(group(), enableInTreeAutoscaling=True, autoscalerOptions={"resources": given})
    )
    assert request.groups[0].requests["cpu"] == 3


def test_autoscaling_without_a_bound_has_no_most() -> None:
    request = cluster_request(manifest(group(most=2**31 - 1), enableInTreeAutoscaling=True))
    assert request.pods(most=True) is None
    assert request.total(most=True) is None


def test_init_container_of_workers_counts_where_it_is_more() -> None:
    small = group()
    small["template"] = template("ray-worker", "100m", "1Gi")
    request = cluster_request(manifest(small))
    assert request.groups[1].requests["cpu"] == Decimal("0.2")
    assert request.groups[1].requests["memory"] == GIB


def test_own_init_containers_sidecars_and_overhead_are_counted() -> None:
    limits = {"limits": {"cpu": "1"}}
    big = {"name": "big", "resources": {"limits": {"cpu": "4"}}}
    sidecar = {"name": "log", "restartPolicy": "Always", "resources": limits}
    for inits, cpus in (
        ([big], "4.25"),
        ([sidecar, big], "5.25"),
        ([big, sidecar], "4.25"),
        ([sidecar], "2.25"),
    ):
        found = group()
        found["template"]["spec"] |= {"initContainers": inits, "overhead": {"cpu": "250m"}}
        assert cluster_request(manifest(found)).groups[1].requests["cpu"] == Decimal(cpus)


def test_replicas_are_kept_between_minimum_and_maximum() -> None:
    over, under, unsaid = group("a", 9, 3), {**group("b", 0), "minReplicas": 2}, group("c", None)
    request = cluster_request(manifest(over, under, {**unsaid, "minReplicas": 1}))
    assert [each.replicas for each in request.groups] == [1, 3, 2, 1]


def test_hosts_multiply_pods() -> None:
    request = cluster_request(manifest(group("tpu", 2, 4, numOfHosts=4)))
    assert request.groups[1].replicas == 8
    assert request.objects["services"] == 2


def test_limit_range_gives_what_is_not_said() -> None:
    item = {"type": "Container", "default": {"cpu": "3", "memory": "1Gi"}, "defaultRequest": {"cpu": "500m"}}
    bare = group()
    bare["template"]["spec"]["containers"][0]["resources"] = {"limits": {"memory": "2Gi"}}
    request = cluster_request(
        manifest(bare), limit_ranges=[{"metadata": {"name": "l"}, "spec": {"limits": [item]}}]
    )
    worker = request.groups[1]
    assert worker.requests["cpu"] == Decimal("0.5")
    assert worker.limits["cpu"] == 3
    assert worker.requests["memory"] == 2 * GIB  # the request that is not said is the own limit


def test_objects_are_counted_by_the_names_that_quotas_have() -> None:
    claim = {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c-home"},
        "spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "10Gi"}}},
    }  # fmt: skip
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "c"}}
    request = cluster_request(manifest(group(), authOptions={"mode": "token"}), [claim, policy])
    assert request.objects == {
        "count/rayclusters.ray.io": 1, "services": 1, "count/services": 1, "secrets": 1, "count/secrets": 1,
        "persistentvolumeclaims": 1, "count/persistentvolumeclaims": 1,
        "fast.storageclass.storage.k8s.io/persistentvolumeclaims": 1,
        "requests.storage": 10 * GIB, "fast.storageclass.storage.k8s.io/requests.storage": 10 * GIB,
        "count/networkpolicies.networking.k8s.io": 1,
    }  # fmt: skip


def test_manifest_is_not_changed() -> None:
    given = manifest(group(), enableInTreeAutoscaling=True)
    before = json.dumps(given)
    request = cluster_request(given)
    pod = pod_body(request, request.groups[1])
    assert json.dumps(given) == before
    assert pod["spec"]["initContainers"][-1]["image"] == "ray"
    assert pod["metadata"]["generateName"] == "c-w-worker-"


def test_containers_that_the_operator_adds_are_as_safe_as_the_first_one() -> None:
    secured = {"allowPrivilegeEscalation": False}
    given = manifest(group(), enableInTreeAutoscaling=True, autoscalerOptions={"securityContext": secured})
    given["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["securityContext"] = secured
    request = cluster_request(given)
    head, worker = (pod_body(request, each)["spec"] for each in request.groups)
    assert head["containers"][1]["securityContext"] == secured
    assert head["containers"][1]["image"] == "ray"
    assert worker["initContainers"][0]["securityContext"] == secured
