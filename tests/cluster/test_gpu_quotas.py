"""GPUs of a team by type, which the API server does not count: who asks for more than is left is refused beforehand."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from sp_ray_ml.cluster import ClusterSettings
from sp_ray_ml.cluster._create import create
from sp_ray_ml.cluster._gpu_quotas import GPUS, check_gpu_types, gpus_of
from sp_ray_ml.cluster._kinds import POD, QUEUE_LABEL, RAY_CLUSTER, TEAM_LABEL
from sp_ray_ml.cluster._prepare import Request
from sp_ray_ml.cluster._rayjob_plan import plan_rayjob
from sp_ray_ml.cluster._scale import scale
from sp_ray_ml.cluster._suspend import resume
from sp_ray_ml.cluster.run_settings import RunCluster
from sp_ray_ml.errors import ConfigError

from .kept import Kept
from .made import node
from .planned import made, manifest
from .test_features import V14, schema
from .test_plan import said

IN_USE = (
    "quota sp-ray-team allows 1 GPU of type a100, 1 are used (1 GPU by cluster theirs), "
    "the cluster asks for 1: short by 1"
)


def team_quota(**limits: int) -> dict[str, Any]:
    hard = {"requests.nvidia.com/gpu": str(sum(limits.values()))}
    return {
        "apiVersion": "v1", "kind": "ResourceQuota",
        "metadata": {
            "name": "sp-ray-team", "namespace": "lab", "labels": {TEAM_LABEL: "graph"},
            "annotations": {GPUS: json.dumps(limits)},
        },
        "spec": {"hard": hard}, "status": {"hard": hard, "used": {}},
    }  # fmt: skip


def gpu_cluster(
    name: str = "mine", kind: str = "a100", *, replicas: int = 1, most: int | None = None, **labels: str
) -> dict[str, Any]:
    found = manifest(replicas, replicas if most is None else most, gpus=1, gpu_type=kind)
    found["metadata"] |= {"name": name, "labels": labels}
    if most is not None:
        found["spec"]["enableInTreeAutoscaling"] = True
    return found


def worker_pod(cluster: str, kind: str = "a100") -> dict[str, Any]:
    spec = gpu_cluster(cluster, kind)["spec"]["workerGroupSpecs"][0]["template"]["spec"]
    meta = {"name": f"{cluster}-worker", "namespace": "lab", "labels": {"ray.io/cluster": cluster}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": {"phase": "Running"}}


def api(*bodies: dict[str, Any]) -> Kept:
    """A team with four T4 and one A100, which cluster theirs uses."""
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "lab"}}
    return Kept(space, team_quota(t4=4, a100=1), worker_pod("theirs"), *bodies)


def test_a_cluster_that_asks_for_a_type_that_is_in_use_is_not_created_whatever_the_sum() -> None:
    request = Request(gpu_cluster(), (), ClusterSettings(name="mine"))
    there = api()
    with pytest.raises(ConfigError) as raised:
        create(there, request, with_plan=False)
    assert raised.value.message == IN_USE
    assert "sp-ray get cluster -n lab" in str(raised.value.hint)
    assert "have whoever applies the file of team graph raise it" in str(raised.value.hint)
    assert there.find(RAY_CLUSTER, "lab", "mine") is None
    create(there, Request(gpu_cluster(kind="t4"), (), ClusterSettings(name="mine")), with_plan=False)
    assert there.find(RAY_CLUSTER, "lab", "mine")


def test_what_waits_in_a_queue_is_kueues_to_count() -> None:
    queued = gpu_cluster(**{QUEUE_LABEL: "graph"})
    check_gpu_types(api(), queued)
    create(api(), Request(queued, (), ClusterSettings(name="mine")), with_plan=False)


def test_a_run_that_begins_now_is_refused_and_a_schedule_of_runs_is_not() -> None:
    there = api()
    there.answers["/openapi/v3/apis/ray.io/v1"] = {
        "components": {
            "schemas": {
                "c": schema(*V14, "authOptions.mode", "rayVersion", "headGroupSpec", "workerGroupSpecs")
            }
        }
    }
    a100 = {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}
    large = node("n1", gpu=2, labels=a100)
    large["status"]["allocatable"]["pods"] = "110"
    there.put({"apiVersion": "v1", "kind": "Node", **large})
    wanted = RunCluster(
        namespace="lab", image="example.com/own:1", ray_version="2.60.0", submit="rayjob",
        workers={"replicas": 1, "cpus": 1, "memory": "1Gi", "gpus": 1, "gpu_type": "a100"},
    )  # fmt: skip

    def planned(now: bool, cluster: RunCluster = wanted) -> Any:
        return plan_rayjob(
            there, cluster, "run-1", "true", env={}, metadata={}, annotations={}, starts_now=now
        )

    with pytest.raises(ConfigError, match=r"1 are used \(1 GPU by cluster theirs\).*asks for 1: short by 1"):
        planned(now=True)
    assert planned(now=False)
    assert planned(True, wanted.model_copy(update={"queue": "graph"}))


def test_more_workers_than_there_are_gpus_left_are_refused_and_fewer_are_not() -> None:
    there = api(gpu_cluster(replicas=0, most=1), worker_pod("mine", "t4"))
    with pytest.raises(ConfigError, match="asks for 1: short by 1"):
        scale(there, "lab", "mine", "w", 1)
    assert there.get(RAY_CLUSTER, "lab", "mine")["spec"]["workerGroupSpecs"][0]["replicas"] == 0
    over = gpu_cluster("theirs", replicas=2)  # as --below-use leaves it
    over["spec"]["workerGroupSpecs"][0]["maxReplicas"] = 2
    assert scale(api(over), "lab", "theirs", "w", 1)["spec"]["workerGroupSpecs"][0]["replicas"] == 1


def test_a_suspended_cluster_is_not_resumed_where_others_use_its_gpus_by_now() -> None:
    suspended = gpu_cluster()
    suspended["spec"]["suspend"] = True
    there = api(suspended)
    with pytest.raises(ConfigError) as raised:
        resume(there, there.get(RAY_CLUSTER, "lab", "mine"))
    assert raised.value.message == IN_USE
    assert there.get(RAY_CLUSTER, "lab", "mine")["spec"]["suspend"]
    there.delete(POD, "lab", "theirs-worker")
    assert not resume(there, there.get(RAY_CLUSTER, "lab", "mine"))["spec"]["suspend"]


@pytest.mark.parametrize(
    ("limits", "most", "used", "state", "words"),
    [
        ({"t4": 4, "a100": 1}, 6, 0, "never", "at its most the cluster alone asks for 6, and nobody would stop its autoscaler"),
        ({"t4": 4, "a100": 1}, 10**6, 0, "never", "asks for as many as Ray wants"),
        ({"t4": 4, "a100": 1}, 4, 2, "ok", "2 are used: at its most the cluster asks for 4, and its autoscaler could go beyond"),
        ({"t4": 4, "a100": 1}, 2, 2, "ok", "has room for it"),
        ({"t4": 4}, 6, 0, "ok", "so the autoscaler is stopped 2 GPUs before that"),
        ({"t4": 4}, 10**6, 0, "ok", "has room for it"),
    ],
)  # fmt: skip
def test_an_autoscaler_counts_with_its_most_where_nobody_else_would_stop_it(
    limits: dict[str, int], most: int, used: int, state: str, words: str
) -> None:
    wanted = gpu_cluster(kind="t4", replicas=1, most=most)
    pods = [worker_pod(f"other{n}", "t4") for n in range(used)]
    found = made(wanted, nodes=[], quotas=[team_quota(**limits)], namespace_pods=pods)
    assert f"{state}: " in said(found, "quota")
    assert words in said(found, "quota")
    (remedy,) = {each.remedy for each in found.findings if each.check == "quota"}
    assert ("max_workers" in remedy) == ("room" not in words)


def test_a_plan_says_that_a_type_is_in_use() -> None:
    quotas, pods = [team_quota(t4=4, a100=1)], [worker_pod("theirs")]
    assert said(made(gpu_cluster(), quotas=quotas, namespace_pods=pods), "quota") == f"short: {IN_USE}"


def test_clusters_without_gpus_and_namespaces_without_a_team_are_asked_nothing_more() -> None:
    there = api()
    check_gpu_types(there, manifest())
    assert there.asked == 0
    assert gpus_of([worker_pod("a", "t4"), worker_pod("b")]) == {"t4": Decimal(1), "a100": Decimal(1)}
