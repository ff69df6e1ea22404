"""A plan is a function of what was read: each case by hand, as the API server would give it."""

from __future__ import annotations

import copy
import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest

from sp_ray_ml.cluster._features import Features
from sp_ray_ml.cluster._gpu_types import SPOT_TERMS, SPOT_TOLERATIONS
from sp_ray_ml.cluster._kinds import RAY_CLUSTER, SECRET, SERVICE_ACCOUNT
from sp_ray_ml.cluster._permissions import needs
from sp_ray_ml.cluster._plan import Plan, plan_from
from sp_ray_ml.cluster._plan_facts import PRIORITY_CLASS, PlanFacts, references
from sp_ray_ml.cluster._requests import cluster_request

from .planned import KNOWN, affinity, made, manifest, node, pod, quota

RECORDINGS = Path(__file__).parents[1] / "kubernetes" / "recordings"


def said(found: Plan, check: str) -> str:
    sentences = [f"{each.state}: {each.sentence}" for each in found.findings if each.check == check]
    return "\n".join(sentences)


# --- nodes ------------------------------------------------------------------------------------------------------------


def test_what_there_is_room_for_fits() -> None:
    found = made(manifest())
    assert found.verdict == "fits"
    assert said(found, "nodes") == "ok: there is room for 3 pods on the 2 nodes that may take them"
    assert found.lines()[0] == "cluster mine in namespace lab: fits now"
    assert found.lines()[1].split() == ["asks", "for", "3", "pods,", "10", "CPUs,", "20Gi", "of", "memory"]


def test_full_nodes_fit_when_others_leave() -> None:
    found = made(manifest(), pods=[pod("a", "15"), pod("b", "12")])
    assert found.verdict == "fits_after_scaling"
    assert "worker group w: room for " in said(found, "nodes")
    assert "all would fit when others leave" in said(found, "nodes")


def test_own_pods_do_not_take_room_from_the_cluster_itself() -> None:
    busy = [pod("a", "15", namespace="lab", cluster="mine"), pod("b", "15", namespace="lab", cluster="mine")]
    assert made(manifest(), pods=busy).verdict == "fits"
    busy = [
        pod("a", "15", namespace="elsewhere", cluster="mine"),
        pod("b", "15", namespace="lab", cluster="other"),
    ]
    assert made(manifest(), pods=busy).verdict == "fits_after_scaling"


def test_full_nodes_of_a_cloud_are_added_to() -> None:
    nodes = [node("a", labels={"cloud.google.com/gke-nodepool": "p"})]
    found = made(manifest(), nodes, pods=[pod("a", "15")])
    assert found.verdict == "fits_after_scaling"
    assert "GKE may add nodes of their kind" in said(found, "nodes")


def test_more_pods_than_the_nodes_can_ever_hold_never_fit() -> None:
    found = made(manifest(replicas=20, most=20))
    assert found.verdict == "never_fits"
    assert "room for 7 of 20 pods of 4 CPUs, 8Gi of memory" in said(found, "nodes")


def test_pod_larger_than_every_node_never_fits_and_the_largest_is_named() -> None:
    found = made(manifest(cpu="32"))
    assert found.verdict == "never_fits"
    assert "each pod asks for 32 CPUs, on the 2 nodes that may take it there are at most 16 CPUs" in said(
        found, "nodes"
    )


def test_pod_that_no_one_node_has_all_of_never_fits() -> None:
    nodes = [node("head", "2", "4Gi"), node("cpus", "64", "8Gi"), node("memory", "4", "512Gi")]
    found = made(manifest(cpu="32", memory="64Gi"), nodes)
    assert "has all of 32 CPUs, 64Gi of memory for one pod" in said(found, "nodes")


def test_daemons_take_room_on_every_node() -> None:
    daemons = [pod("a", "1", daemon=True), pod("b", "1", daemon=True)]
    found = made(manifest(cpu="16", memory="1Gi", replicas=1), pods=daemons)
    assert found.verdict == "never_fits"
    assert "at most 15 CPUs" in said(found, "nodes")


def test_with_an_autoscaler_what_no_node_takes_is_not_called_impossible() -> None:
    nodes = [node("a", labels={"karpenter.sh/nodepool": "p"})]
    found = made(manifest(cpu="32", replicas=1), nodes)
    assert found.verdict == "fits_after_scaling"
    assert "whether Karpenter has a node group at zero that would do is not seen here" in said(found, "nodes")
    found = made(manifest(cpu="32", replicas=1), [node("a")], autoscaler=True)
    assert "the cluster autoscaler has a node group" in said(found, "nodes")


GPU_NODES = [
    node("a"),
    node("b", gpus=4, labels={"cloud.google.com/gke-accelerator": "nvidia-tesla-t4"}),
    node("c", gpus=8, labels={"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}),
    node("d", gpus=8, labels={"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}),
]
# Nodes of a cloud's group would be scaled; these are a plain cluster's.


@pytest.mark.parametrize(
    ("kind", "fits"), [("t4", True), ("a100-80gb", True), ("", True), ("a100", False), ("l4", False)]
)
def test_gpu_type_is_found_by_whatever_label_names_it(kind: str, fits: bool) -> None:
    found = made(manifest(cpu="1", memory="1Gi", gpus=2, gpu_type=kind), GPU_NODES)
    assert found.verdict == ("fits" if fits else "never_fits")
    if not fits:
        assert f"no node has a GPU of type {kind}; there are t4 (1 node), a100-80gb (2 nodes)" in said(
            found, "nodes"
        )


def test_mistyped_gpu_type_has_its_near_match_among_those_there_are() -> None:
    found = made(manifest(cpu="1", gpus=1, gpu_type="a100-80bg"), GPU_NODES)
    assert "did you mean a100-80gb?" in said(found, "nodes")


def test_more_gpus_than_a_node_has_never_fit() -> None:
    found = made(manifest(cpu="1", memory="1Gi", gpus=8, gpu_type="t4"), GPU_NODES)
    assert "each pod asks for 8 GPUs, on the 1 node that may take it there are at most 4 GPUs" in said(
        found, "nodes"
    )
    found = made(manifest(cpu="1", memory="1Gi", gpus=1), [node("a"), node("b")])
    assert "there is no nvidia.com/gpu" in said(found, "nodes")


def test_pods_without_gpus_leave_gpu_nodes_to_those_with() -> None:
    nodes = [node("plain", "8"), node("gpu", "8", gpus=2)]
    wanted = manifest(cpu="4", memory="1Gi", gpus=1)
    assert made(wanted, nodes).verdict == "fits"  # the head on the plain node, both workers on the other


def test_taints_that_are_not_tolerated_are_named() -> None:
    taint = {"key": "team", "value": "b", "effect": "NoSchedule"}
    nodes = [node("head"), node("a", labels={"pool": "b"}, taints=[taint])]
    found = made(manifest(nodeSelector={"pool": "b"}), nodes)
    assert found.verdict == "never_fits"
    assert (
        "1 node would take it but for taints that it does not tolerate: team=b:NoSchedule (1 node)"
        in said(found, "nodes")
    )
    tolerant = manifest(nodeSelector={"pool": "b"}, tolerations=[{"key": "team", "operator": "Exists"}])
    assert made(tolerant, nodes).verdict == "fits"


def test_selector_that_no_node_meets_is_named() -> None:
    found = made(manifest(nodeSelector={"disk": "ssd"}))
    assert found.verdict == "never_fits"
    assert "none of 2 nodes has the label disk=ssd" in said(found, "nodes")


@pytest.mark.parametrize(
    ("operator", "values", "fits"),
    [
        ("In", ["x"], True),
        ("NotIn", ["x"], False),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
        ("Gt", ["1"], False),
    ],
)
def test_affinity_is_met_as_kubernetes_meets_it(operator: str, values: list[str], fits: bool) -> None:
    expression = {"key": "zone", "operator": operator, "values": values}
    wanted = manifest(affinity=affinity([{"matchExpressions": [expression]}]))
    wanted["spec"]["headGroupSpec"]["template"]["spec"]["affinity"] = affinity(
        [{"matchExpressions": [expression]}]
    )
    assert made(wanted, [node("a", labels={"zone": "x"})]).verdict == ("fits" if fits else "never_fits")


def test_spot_nodes_of_any_cloud_are_found() -> None:
    spot = affinity([{"matchExpressions": expressions} for expressions in SPOT_TERMS])
    wanted = manifest(affinity=spot, tolerations=SPOT_TOLERATIONS, replicas=1)
    label = "cloud.google.com/gke-spot"
    taints = [{"key": label, "value": "true", "effect": "NoSchedule"}]
    nodes = [node("a"), node("s", labels={label: "true"}, taints=taints)]
    assert made(wanted, nodes).verdict == "fits"


def test_cordoned_and_broken_nodes_take_nothing_yet_are_no_reason_for_never() -> None:
    for broken in (node("a", unschedulable=True), node("a", ready="False")):
        found = made(manifest(), [broken])
        assert found.verdict == "fits_after_scaling"
        assert "not ready or cordoned" in said(found, "nodes")


def test_group_that_begins_without_workers_does_not_keep_the_cluster_from_coming_up() -> None:
    wanted = manifest(replicas=0, most=4, gpus=1, gpu_type="l4")
    wanted["spec"]["enableInTreeAutoscaling"] = True
    found = made(wanted)
    assert found.verdict == "fits_after_scaling"
    assert "no node has a GPU of type l4" in said(found, "nodes")
    assert "it begins without workers" in said(found, "nodes")
    assert "room for 1 pod on the 2 nodes" in said(found, "nodes")
    assert made(manifest(replicas=0, most=0, gpus=1, gpu_type="l4")).verdict == "fits"


def test_number_of_pods_a_node_takes_counts() -> None:
    small = node("a", "64")
    small["status"]["allocatable"]["pods"] = "2"
    found = made(manifest(cpu="1", memory="1Gi"), [small])
    assert found.verdict == "never_fits"


def test_a_thousand_workers_are_planned_at_once() -> None:
    kinds = ["t4", "a100-80gb", "l4", ""]
    nodes = [
        node(f"n{i}", gpus=4 if kinds[i % 4] else 0,
             labels={"nvidia.com/gpu.product": {"t4": "Tesla-T4", "a100-80gb": "NVIDIA-A100-SXM4-80GB", "l4": "NVIDIA-L4"}[kinds[i % 4]]}
             if kinds[i % 4] else {})
        for i in range(1000)
    ]  # fmt: skip
    busy = [pod(f"n{i}", "1") for i in range(1000) for _ in range(5)]
    facts = PlanFacts(features=KNOWN, nodes=nodes, pods=busy)
    wanted = manifest(replicas=1000, most=1000, cpu="2", memory="8Gi", gpus=1, gpu_type="t4")
    start = time.process_time()
    found = plan_from(facts, wanted)
    spent = time.process_time() - start
    print(f"planned 1 head and 1,000 workers on 1,000 nodes with 5,000 pods in {spent:.2f} s of CPU time")
    assert found.verdict == "fits"


# --- quotas and limit ranges --------------------------------------------------------------------------------------------


def test_quota_with_room_is_kept() -> None:
    found = made(
        manifest(), quotas=[quota({"requests.cpu": "20", "pods": "10", "count/rayclusters.ray.io": "1"})]
    )
    assert found.verdict == "fits"
    assert said(found, "quota") == "ok: quota team has room for it"


def test_quota_smaller_than_the_request_never_fits() -> None:
    found = made(manifest(), quotas=[quota({"limits.memory": "16Gi"})])
    assert found.verdict == "never_fits"
    assert (
        "quota team allows 16Gi of memory (limits.memory), the cluster alone asks for 20Gi of memory"
        in said(found, "quota")
    )


def test_quota_in_use_is_short_by_so_much_and_its_users_are_named() -> None:
    users = [
        pod("a", "6", namespace="lab", cluster="theirs"), pod("a", "3", namespace="lab", cluster="theirs"),
        pod("b", "1", namespace="lab"),
    ]  # fmt: skip
    found = made(
        manifest(), quotas=[quota({"requests.cpu": "12"}, {"requests.cpu": "10"})], namespace_pods=users
    )
    assert found.verdict == "fits_after_scaling"
    assert said(found, "quota") == (
        "short: quota team allows 12 CPUs (requests.cpu), 10 CPUs are used (9 CPUs by cluster theirs, 1 CPU by pod p), "
        "the cluster asks for 10 CPUs: short by 8 CPUs"
    )


def test_own_pods_do_not_count_against_their_own_quota() -> None:
    own = [pod("a", "4", namespace="lab", cluster="mine")]
    found = made(
        manifest(), quotas=[quota({"requests.cpu": "12"}, {"requests.cpu": "4"})], namespace_pods=own
    )
    assert found.verdict == "fits"


def test_cluster_that_is_there_is_counted_already() -> None:
    full = quota({"count/rayclusters.ray.io": "1"}, {"count/rayclusters.ray.io": "1"})
    assert made(manifest(), quotas=[full], exists=True).verdict == "fits"
    assert made(manifest(), quotas=[full]).verdict == "fits_after_scaling"


def test_sidecar_of_autoscaling_counts_and_its_most_is_told() -> None:
    wanted = manifest(most=6)
    wanted["spec"]["enableInTreeAutoscaling"] = True
    found = made(wanted, quotas=[quota({"limits.cpu": "10"})])
    assert "the cluster alone asks for 10.5 CPUs" in said(found, "quota")
    found = made(wanted, quotas=[quota({"limits.cpu": "20"})])
    assert found.verdict == "fits"
    assert "at its most the cluster asks for 26.5 CPUs, so the autoscaler is stopped 6.5 CPUs before" in said(
        found, "quota"
    )


def test_gpus_pods_and_objects_are_counted() -> None:
    wanted = manifest(gpus=2, cpu="1", memory="1Gi")
    for hard, sentence in (
        ({"requests.nvidia.com/gpu": "3"}, "alone asks for 4 GPUs"),
        ({"pods": "2"}, "alone asks for 3 pods"),
        ({"services": "0"}, "alone asks for 1 services"),
        ({"count/rayclusters.ray.io": "0"}, "alone asks for 1 rayclusters"),
    ):
        assert sentence in said(made(wanted, GPU_NODES, quotas=[quota(hard)]), "quota")


def test_quota_that_wants_limits_is_told_of_containers_without() -> None:
    wanted = manifest()
    sidecar = {"name": "proxy", "image": "p"}
    wanted["spec"]["headGroupSpec"]["template"]["spec"]["containers"].append(sidecar)
    found = made(wanted, quotas=[quota({"limits.cpu": "100"})])
    assert found.verdict == "never_fits"
    assert "wants every container to say limits.cpu: proxy do not" in said(found, "quota")
    item = {"type": "Container", "default": {"cpu": "100m"}, "defaultRequest": {"cpu": "100m"}}
    ranges = [{"metadata": {"name": "l"}, "spec": {"limits": [item]}}]
    assert made(wanted, quotas=[quota({"limits.cpu": "100"})], limit_ranges=ranges).verdict == "fits"


@pytest.mark.parametrize(
    ("scope", "counts"),
    [
        ({"scopes": ["NotTerminating"]}, True),
        ({"scopes": ["Terminating"]}, False),
        ({"scopes": ["BestEffort"]}, False),
        ({"scopes": ["NotBestEffort"]}, True),
        ({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}, True),
        ({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["low"]}]}}, False),
        ({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "Exists"}]}}, True),
    ],
)  # fmt: skip
def test_quota_of_a_scope_counts_the_pods_in_it_only(scope: dict[str, Any], counts: bool) -> None:
    wanted = manifest(priorityClassName="high")
    found = made(wanted, quotas=[quota({"pods": "1"}, **scope)])
    assert found.verdict == ("never_fits" if counts else "fits")


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        (
            {"type": "Container", "max": {"cpu": "2"}},
            "worker group w's ray-worker has a limit of 4 CPUs, at most 2 CPUs",
        ),
        (
            {"type": "Container", "min": {"memory": "300Mi"}},
            "wait-gcs-ready asks for 256Mi of memory, at least 300Mi",
        ),
        (
            {"type": "Pod", "max": {"memory": "4Gi"}},
            "worker group w's pod has a limit of 8Gi of memory, at most 4Gi",
        ),
    ],
)
def test_limit_ranges_are_kept(item: dict[str, Any], sentence: str) -> None:
    found = made(manifest(), limit_ranges=[{"metadata": {"name": "range"}, "spec": {"limits": [item]}}])
    assert found.verdict == "never_fits"
    assert sentence in said(found, "limits")


def test_ratio_of_limit_to_request_is_kept() -> None:
    wanted = manifest()
    worker = wanted["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    worker["resources"]["requests"] = {"cpu": "1"}
    item = {"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}
    found = made(wanted, limit_ranges=[{"metadata": {"name": "range"}, "spec": {"limits": [item]}}])
    assert "limit of cpu that is 4 times its request, at most 2 are allowed" in said(found, "limits")


# --- permissions, references, admission ---------------------------------------------------------------------------------


def test_permission_to_create_is_needed_and_others_are_missed() -> None:
    wanted = manifest()
    for need in needs(()):
        # What does as well is missing, too.
        allowed = {each: each != need and each not in need.instead for each in needs(())}
        found = made(wanted, permissions=allowed)
        assert found.verdict == ("fits" if need.purpose else "never_fits")
        assert str(need) in said(found, "permissions")
    assert said(made(wanted, permissions=dict.fromkeys(needs(()), True)), "permissions").startswith(
        "ok: you may do all"
    )


def test_permission_for_each_companion_is_needed() -> None:
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "c"}}
    texts = [str(need) for need in needs([policy]) if not need.purpose]
    assert "create networkpolicies.networking.k8s.io" in texts
    assert [str(need) for need in needs(()) if need.kind == RAY_CLUSTER][:3] == [
        f"{verb} rayclusters.ray.io" for verb in ("get", "create", "patch")
    ]


def test_what_stands_beside_a_cluster_is_looked_for_made_and_cleared_away() -> None:
    beside = [
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c-home"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "c"}},
    ]
    needed = {str(need) for need in needs(beside) if not need.purpose and need.kind != RAY_CLUSTER}
    # A Secret is made blindly: whoever may only create Secrets need not be able to read them.
    assert needed == {
        "get persistentvolumeclaims", "create persistentvolumeclaims", "patch persistentvolumeclaims",
        "create secrets", "patch secrets",
    }  # fmt: skip
    later = {str(need) for need in needs(beside) if need.purpose.startswith("clearing away")}
    assert later == {"delete persistentvolumeclaims", "delete secrets"}


def test_the_dashboard_is_asked_through_the_pods_proxy_or_a_forwarded_port() -> None:
    asked = {str(need) for need in needs(()) if need.subresource == "proxy"}
    assert asked == {"get pods/proxy", "create pods/proxy", "update pods/proxy"}
    without = {need: need.subresource != "proxy" for need in needs(())}
    assert said(made(manifest(), permissions=without), "permissions") == "ok: you may do all that it takes"
    without = {need: need.subresource not in {"proxy", "portforward"} for need in needs(())}
    missed = said(made(manifest(), permissions=without), "permissions")
    assert "asking Ray itself whether it is ready (get pods/proxy)" in missed
    assert "sp-ray submit (create pods/proxy)" in missed
    assert "sp-ray submit --working-dir (update pods/proxy)" in missed


def test_a_cluster_with_limits_needs_what_installing_the_agent_takes() -> None:
    limited = manifest()
    limited["metadata"]["annotations"] = {"sp-ray/ttl": "3d"}
    assert not {str(need) for need in needs((), manifest())} & {"create cronjobs.batch"}
    purpose = "being suspended or deleted when its time is over"
    asked = {str(need) for need in needs((), limited) if need.purpose == purpose}
    for kind in (
        "cronjobs.batch", "serviceaccounts", "roles.rbac.authorization.k8s.io", "rolebindings.rbac.authorization.k8s.io",
    ):  # fmt: skip
        assert {f"create {kind}", f"patch {kind}"} <= asked
    # Nobody can give the agent a right that he has not himself.
    assert {
        "patch rayclusters.ray.io", "delete rayclusters.ray.io", "get secrets", "create configmaps", "get pods/log",
        "create events", "delete cronjobs.batch",
    } <= asked  # fmt: skip
    assert "get pods/exec" not in asked
    head = limited["spec"]["headGroupSpec"]["template"]["spec"]
    head["volumes"] = [{"name": "home", "emptyDir": {}}]
    assert "get pods/exec" in {str(need) for need in needs((), limited) if need.purpose == purpose}
    del head["volumes"]
    lost = made(limited, permissions={need: need.purpose != purpose for need in needs((), limited)})
    assert lost.verdict == "fits"
    assert f"will lack: {purpose} (" in said(lost, "permissions")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("10-reject-autoscaling-sa-missing", SERVICE_ACCOUNT),
        ("10-reject-pod-unknown-serviceaccount", SERVICE_ACCOUNT),
        ("10-reject-pod-unknown-priorityclass", PRIORITY_CLASS),
    ],
)
def test_recorded_refusals_for_what_is_missing_are_planned(name: str, kind: Any) -> None:
    with gzip.open(RECORDINGS / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        wanted = next(line["manifest"] for line in map(json.loads, file) if "manifest" in line)
    named = list(references(cluster_request(wanted), wanted))
    assert named == [(kind, "nope")]
    nodes = [node("a", labels={"type": "kwok"})]
    assert made(wanted, nodes, references={named[0]: True}).verdict == "fits"
    found = made(wanted, nodes, references={named[0]: False})
    assert found.verdict == "never_fits"
    assert f"there is no {kind.name} nope" in said(found, "references")


def test_everything_that_pods_name_is_looked_for() -> None:
    wanted = manifest(
        imagePullSecrets=[{"name": "pull"}],
        volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "s", "secret": {"secretName": "made"}}],
    )  # fmt: skip
    container = wanted["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "auth_token"}}}]
    container["envFrom"] = [
        {"configMapRef": {"name": "settings"}},
        {"configMapRef": {"name": "x", "optional": True}},
    ]
    beside = [{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "made"}}]
    named = {(kind.name, name) for kind, name in references(cluster_request(wanted, beside), wanted, beside)}
    assert named == {("Secret", "pull"), ("PersistentVolumeClaim", "data"), ("ConfigMap", "settings")}


def test_missing_pull_secret_is_told_and_forbids_nothing() -> None:
    found = made(manifest(imagePullSecrets=[{"name": "pull"}]), references={(SECRET, "pull"): False})
    assert found.verdict == "fits"
    assert "no Secret pull to pull images with" in said(found, "references")


def test_missing_namespace_never_fits() -> None:
    found = made(manifest(), namespace=False)
    assert found.verdict == "never_fits"
    assert "there is no namespace lab" in said(found, "namespace")


def test_refusals_of_the_api_server_are_told_in_its_words() -> None:
    found = made(manifest(), refusal="admission webhook says no: cost centre missing")
    assert "cost centre missing" in said(found, "schema")
    found = made(manifest(), pod_refusals={"": 'violates PodSecurity "restricted:latest"'})
    assert found.verdict == "never_fits"
    assert 'head: the API server refuses its pod: violates PodSecurity "restricted' in said(found, "pods")


def test_what_kuberay_refuses_in_an_event_only_is_planned() -> None:
    wanted = manifest()
    wanted["spec"]["workerGroupSpecs"].append(copy.deepcopy(wanted["spec"]["workerGroupSpecs"][0]))
    found = made(wanted)
    assert found.verdict == "never_fits"
    assert "a second worker group w" in said(found, "schema")


# --- what may not be read -----------------------------------------------------------------------------------------------


def test_what_may_not_be_read_is_said_and_not_guessed() -> None:
    facts = PlanFacts(
        features=Features(None), namespace=None, quotas=None, limit_ranges=None, nodes=None, pods=None,
        namespace_pods=None, references={(SERVICE_ACCOUNT, "me"): None},
    )  # fmt: skip
    found = plan_from(facts, manifest())
    assert found.verdict == "fits"
    assert not found.complete
    assert found.lines()[0].endswith("fits now, as far as could be checked")
    for part in ("resource quotas", "limit ranges", "nodes", "ServiceAccount me"):
        assert part in said(found, "not checked")
    assert said(found, "nodes") == ""
    assert said(found, "quota") == ""


def test_nodes_without_their_pods_are_half_an_answer() -> None:
    found = made(manifest(), pods=None)
    assert found.verdict == "fits"
    assert said(found, "nodes").startswith("unknown: empty, the nodes take 3 pods")


# --- the answer ---------------------------------------------------------------------------------------------------------


def test_quota_and_nodes_are_both_told() -> None:
    found = made(
        manifest(), pods=[pod("a", "16"), pod("b", "16")], quotas=[quota({"pods": "5"}, {"pods": "4"})]
    )
    assert found.verdict == "fits_after_scaling"
    assert "short by 2 pods" in said(found, "quota")
    assert "room for 0 of" in said(found, "nodes")


def test_answer_is_one_screen_with_the_worst_first_and_a_remedy_for_each() -> None:
    wanted = manifest(cpu="99")
    wanted["spec"]["enableInTreeAutoscaling"] = True
    found = made(
        wanted, GPU_NODES, quotas=[quota({"requests.cpu": "1"})], permissions=dict.fromkeys(needs(()), False),
        limit_ranges=[{"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Pod", "max": {"cpu": "1"}}]}}],
    )  # fmt: skip
    shown = found.lines()
    assert len(shown) <= 30
    assert max(map(len, shown)) <= 100
    states = [each.state for each in found.findings]
    assert states == sorted(states, key=["never", "short", "unknown", "ok"].index)
    assert all(each.remedy for each in found.findings if each.state in {"never", "short"})


def test_plan_is_plain_data_for_json() -> None:
    found = json.loads(json.dumps(made(manifest(cpu="500m")).as_dict()))
    assert found["verdict"] == "fits"
    assert found["requests"] == {"cpu": 3, "memory": 20 * 2**30}
    assert [each["name"] for each in found["groups"]] == ["head", "w"]
    assert found["groups"][1]["requests"]["cpu"] == 0.5
    assert found["findings"][0].keys() == {"check", "state", "sentence", "remedy"}
