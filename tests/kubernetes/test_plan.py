"""Plans on a real Kubernetes: real quotas, limit ranges, permissions and nodes, and what then really happens."""

from __future__ import annotations

import copy
import json
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sp_ray_ml.cluster._api import Api
from sp_ray_ml.cluster._features import features
from sp_ray_ml.cluster._gpu_types import gpu_terms
from sp_ray_ml.cluster._kinds import (
    LIMIT_RANGE,
    NAMESPACE,
    POD,
    QUOTA,
    RAY_CLUSTER,
    Kind,
)
from sp_ray_ml.cluster._manifest import Facts, secure
from sp_ray_ml.cluster._plan import Plan, plan
from sp_ray_ml.cluster._snapshot import condition, group_states
from sp_ray_ml.cluster._watch import Feed, Watch

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(600)]

FAKE = {"key": "kwok.x-k8s.io/node", "operator": "Exists"}
_PATIENCE_S = 300.0
Body = dict[str, Any]


def template(
    name: str, cpu: str, memory: str, *, pool: str = "", gpus: int = 0, gpu_type: str = "", **spec: Any
) -> Body:
    limits = {"cpu": cpu, "memory": memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    found: Body = {
        "containers": [{"name": name, "image": "localhost/busybox:local", "resources": {"limits": limits}}],
        "tolerations": [FAKE], **({"nodeSelector": {"pool": pool}} if pool else {}), **spec,
    }  # fmt: skip
    if gpu_type:
        terms = [{"matchExpressions": expressions} for expressions in gpu_terms(gpu_type)]
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        found["affinity"] = {"nodeAffinity": required}
    return {"spec": found}


def manifest(name: str, namespace: str, replicas: int = 2, *, pool: str = "", **worker: Any) -> Body:
    wanted = {"cpu": "1", "memory": "1Gi", **worker}
    group = {
        "groupName": "w", "replicas": replicas, "minReplicas": 0, "maxReplicas": replicas, "rayStartParams": {},
        "template": template("ray-worker", pool=pool, **wanted),
    }  # fmt: skip
    head = {"rayStartParams": {}, "template": template("ray-head", "1", "1Gi", pool=pool)}
    return {
        "apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": name, "namespace": namespace},
        "spec": {"rayVersion": "2.60.0", "headGroupSpec": head, "workerGroupSpecs": [group]},
    }  # fmt: skip


def until(api: Api, kind: Kind, namespace: str, holds: Callable[[list[Body]], bool]) -> list[Body]:
    """Watch objects until something holds of them."""
    feed, end = Feed(), time.monotonic() + _PATIENCE_S
    with Watch(api, kind, namespace, feed) as watch:
        while not (watch.synced and holds(watch.objects())):
            if time.monotonic() > end:
                raise AssertionError(f"{kind.plural} did not get there: {json.dumps(watch.objects())[:3000]}")
            feed.next(1)
        return watch.objects()


def said(found: Plan, check: str) -> str:
    return "\n".join(f"{each.state}: {each.sentence}" for each in found.findings if each.check == check)


@pytest.fixture
def pool(fake_node: Callable[..., str]) -> str:
    """A pool of fake nodes: one without GPUs, one with four T4, one with two A100."""
    name = f"plan-{secrets.token_hex(3)}"
    size = ("--cpu", "8", "--memory", "32Gi", "--label", f"pool={name}")
    fake_node(*size)
    fake_node(*size, "--gpu", "4", "--label", "cloud.google.com/gke-accelerator=nvidia-tesla-t4")
    fake_node(*size, "--gpu", "2", "--label", "nvidia.com/gpu.product=NVIDIA-A100-SXM4-80GB")
    return name


def test_plan_agrees_with_what_then_happens(api: Api, namespace: str, pool: str) -> None:
    cases = {
        "plain": (manifest("plain", namespace, pool=pool), "fits"),
        "t4": (manifest("t4", namespace, pool=pool, gpus=1, gpu_type="t4"), "fits"),
        "a100": (manifest("a100", namespace, 1, pool=pool, gpus=2, gpu_type="a100-80gb"), "fits"),
        "absent": (manifest("absent", namespace, 1, pool=pool, gpus=1, gpu_type="l4"), "never_fits"),
        "many": (manifest("many", namespace, 1, pool=pool, gpus=8, gpu_type="t4"), "never_fits"),
        "large": (manifest("large", namespace, 1, pool=pool, cpu="9"), "never_fits"),
    }
    for name, (wanted, verdict) in cases.items():
        found = plan(api, wanted)
        assert found.verdict == verdict, f"{name}\n" + "\n".join(found.lines())
    assert api.list(RAY_CLUSTER, namespace)[0] == []  # a plan makes nothing
    assert api.list(POD, namespace)[0] == []
    made = {name: api.create(RAY_CLUSTER, namespace, wanted) for name, (wanted, _) in cases.items()}

    def decided(pods: list[Body]) -> bool:
        for name, (_, verdict) in cases.items():
            head, workers = group_states(made[name], pods)
            if head.ready < 1 or len(workers.pods) < workers.wanted:
                return False
            waiting = [
                pod for pod in workers.pods if (condition(pod, "PodScheduled") or {}).get("status") == "False"
            ]
            if verdict == "fits" and workers.ready < workers.wanted:
                return False
            if verdict == "never_fits" and len(waiting) < workers.wanted:
                return False
        return True

    until(api, POD, namespace, decided)


def test_room_that_others_take_is_room_once_they_leave(
    api: Api, namespace: str, fake_node: Callable[..., str]
) -> None:
    pool = f"plan-{secrets.token_hex(3)}"
    fake_node("--cpu", "4", "--memory", "16Gi", "--label", f"pool={pool}")
    first = api.create(RAY_CLUSTER, namespace, manifest("first", namespace, pool=pool))
    until(api, POD, namespace, lambda pods: all(s.ready >= s.wanted for s in group_states(first, pods)))
    second = manifest("second", namespace, pool=pool)
    found = plan(api, second)
    assert found.verdict == "fits_after_scaling", "\n".join(found.lines())
    assert "all would fit when others leave" in said(found, "nodes")
    assert (
        plan(api, manifest("first", namespace, pool=pool)).verdict == "fits"
    )  # it does not stand in its own way
    api.delete(RAY_CLUSTER, namespace, "first")
    until(api, POD, namespace, lambda pods: not pods)
    assert plan(api, second).verdict == "fits"


def test_quota_is_counted_as_kubernetes_counts_it(api: Api, namespace: str, pool: str) -> None:
    hard = {"requests.cpu": "6", "limits.memory": "20Gi", "pods": "10", "count/rayclusters.ray.io": "5"}
    body = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"}, "spec": {"hard": hard}}
    api.create(QUOTA, namespace, body)
    until(api, QUOTA, namespace, lambda found: bool(found and (found[0].get("status") or {}).get("used")))
    asked = manifest("asked", namespace, pool=pool)
    asked["spec"]["enableInTreeAutoscaling"] = True
    found = plan(api, asked)
    assert found.verdict == "fits", "\n".join(found.lines())
    cluster = api.create(RAY_CLUSTER, namespace, asked)
    until(api, POD, namespace, lambda pods: all(s.ready >= s.wanted for s in group_states(cluster, pods)))
    total, limits = found.request.total(), found.request.total("limits")
    assert total is not None
    assert limits is not None

    def counted(quotas: list[Body]) -> bool:
        used = quotas[0]["status"]["used"]
        return used["pods"] == "3" and used["requests.cpu"] == "3500m"

    (quota,) = until(api, QUOTA, namespace, counted)
    used = quota["status"]["used"]
    assert (total["cpu"], limits["memory"]) == (3.5, 3.5 * 2**30)
    assert used["limits.memory"] == "3584Mi"
    # As much again is short by half a CPU, and who has the rest is said.
    found = plan(api, manifest("again", namespace, pool=pool))
    assert found.verdict == "fits_after_scaling"
    assert (
        "quota team allows 6 CPUs (requests.cpu), 3.5 CPUs are used (3.5 CPUs by cluster asked), "
        "the cluster asks for 3 CPUs: short by 0.5 CPUs" in said(found, "quota")
    )
    never = manifest("never", namespace, 6, pool=pool)
    assert "the cluster alone asks for 7 CPUs" in said(plan(api, never), "quota")
    api.create(RAY_CLUSTER, namespace, never)
    until(
        api, RAY_CLUSTER, namespace,
        lambda found: any(each["metadata"]["name"] == "never" and condition(each, "ReplicaFailure") for each in found),
    )  # fmt: skip


def test_limit_range_is_kept_and_its_defaults_are_filled_in(api: Api, namespace: str, pool: str) -> None:
    item = {
        "type": "Container",
        "max": {"cpu": "2"},
        "default": {"cpu": "2"},
        "defaultRequest": {"cpu": "1500m"},
    }
    body = {
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": {"name": "range"},
        "spec": {"limits": [item]},
    }
    api.create(LIMIT_RANGE, namespace, body)
    found = plan(api, manifest("c", namespace, pool=pool, cpu="3"))
    assert found.verdict == "never_fits"
    assert "worker group w's ray-worker has a limit of 3 CPUs, at most 2 CPUs are allowed" in said(
        found, "limits"
    )
    bare = manifest("bare", namespace, 1, pool=pool)
    for group in (bare["spec"]["headGroupSpec"], *bare["spec"]["workerGroupSpecs"]):
        group["template"]["spec"]["containers"][0]["resources"] = {"limits": {"memory": "1Gi"}}
    found = plan(api, bare)
    assert found.verdict == "fits"
    cluster = api.create(RAY_CLUSTER, namespace, bare)
    pods = until(
        api, POD, namespace, lambda pods: all(s.ready >= s.wanted for s in group_states(cluster, pods))
    )
    for pod in pods:
        assert pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "1500m"
    total = found.request.total()
    assert total is not None
    assert total["cpu"] == 3


def test_what_admission_says_of_the_pods_is_known_before(api: Api, namespace: str, pool: str) -> None:
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    api.patch(NAMESPACE, None, namespace, label)
    found = plan(api, manifest("c", namespace, pool=pool))
    assert found.verdict == "never_fits"
    assert "head: the API server refuses its pod" in said(found, "pods")
    assert "PodSecurity" in said(found, "pods")
    # With our defaults it keeps to the strictest standard, and so do the containers that the operator adds.
    facts = Facts(namespace, "unused", "unused", "2.60.0")
    wanted = manifest("c", namespace, pool=pool)
    wanted["spec"]["enableInTreeAutoscaling"] = True
    secured = secure(wanted, facts)
    found = plan(api, secured)
    assert found.verdict == "fits", "\n".join(found.lines())
    cluster = api.create(RAY_CLUSTER, namespace, secured)
    until(api, POD, namespace, lambda pods: all(s.ready >= s.wanted for s in group_states(cluster, pods)))


def test_what_the_pods_name_and_is_missing_is_known_before(api: Api, namespace: str, pool: str) -> None:
    wanted = manifest("c", namespace, pool=pool, serviceAccountName="nobody", priorityClassName="first-class")
    found = plan(api, wanted)
    assert found.verdict == "never_fits"
    assert f"there is no ServiceAccount nobody in {namespace}" in said(found, "references")
    assert "there is no PriorityClass first-class" in said(found, "references")


def test_no_such_namespace_is_told(api: Api) -> None:
    found = plan(api, manifest("c", "no-such-namespace-here"))
    assert found.verdict == "never_fits"
    assert "there is no namespace no-such-namespace-here" in said(found, "namespace")


def test_field_that_the_served_crd_does_not_know_is_told_with_its_near_match(
    api: Api, namespace: str
) -> None:
    wanted = manifest("c", namespace)
    wanted["spec"]["upgradeStrateg"] = {"type": "None"}
    assert "upgradeStrateg: unknown; did you mean upgradeStrategy?" in said(plan(api, wanted), "schema")


def test_served_crd_is_one_that_we_support(api: Api) -> None:
    found = features(api)
    assert found.version is not None
    assert found.schema is not None


# --- who may do little --------------------------------------------------------------------------------------------------


@pytest.fixture
def weak(weak_kubeconfig: Callable[..., Path]) -> Iterator[Callable[..., Api]]:
    """Makes connections of a service account that has the rules that are given, and none else."""
    opened: list[Api] = []

    def connect(*rules: tuple[str, list[str], list[str]]) -> Api:
        opened.append(Api(weak_kubeconfig(*rules)))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


def test_who_may_do_nothing_is_told_what_is_needed(weak: Callable[..., Api], namespace: str) -> None:
    found = plan(weak(), manifest("c", namespace))
    assert found.verdict == "never_fits"
    assert (
        f"you may not get rayclusters.ray.io, create rayclusters.ray.io, patch rayclusters.ray.io in {namespace}"
        in said(found, "permissions")
    )
    assert not found.complete


def test_who_may_create_but_not_look_gets_a_plan_that_says_what_it_does_not_know(
    weak: Callable[..., Api], namespace: str
) -> None:
    may = weak(
        ("ray.io", ["rayclusters"], ["get", "create", "patch", "delete"]), ("", ["resourcequotas"], ["list"]),
        ("", ["pods"], ["list"]),
    )  # fmt: skip
    found = plan(may, manifest("c", namespace))
    assert found.verdict == "fits"
    assert found.lines()[0].endswith("as far as could be checked")
    assert "limit ranges, nodes" in said(found, "not checked")
    assert "resource quotas" not in said(found, "not checked")
    permissions = said(found, "permissions")
    assert "sp-ray connect (get pods/portforward, create pods/portforward)" in permissions
    assert "sp-ray delete" not in permissions
    assert said(found, "nodes") == ""


# --- at size ------------------------------------------------------------------------------------------------------------


def test_a_thousand_workers_are_planned_without_making_them(
    api: Api, namespace: str, fake_node: Callable[..., str]
) -> None:
    pool = f"plan-{secrets.token_hex(3)}"
    for _ in range(10):  # a node takes 110 pods
        fake_node("--cpu", "128", "--memory", "512Gi", "--label", f"pool={pool}")
    wanted = manifest("big", namespace, 1000, pool=pool)
    before, start, wall = api.requests, time.process_time(), time.perf_counter()
    found = plan(api, wanted)
    print(
        f"1 head and 1,000 workers planned in {time.perf_counter() - wall:.2f} s, {time.process_time() - start:.2f} s "
        f"of CPU time, {api.requests - before} API calls"
    )
    assert found.verdict == "fits", "\n".join(found.lines())
    too_many = copy.deepcopy(wanted)
    too_many["spec"]["workerGroupSpecs"][0] |= {"replicas": 1100, "maxReplicas": 1100}
    found = plan(api, too_many)
    assert found.verdict == "never_fits"
    assert "room for 1099 of 1100 pods" in said(found, "nodes")
    assert api.list(POD, namespace)[0] == []
