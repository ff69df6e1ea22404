"""Clusters in trouble that no recording has, in the shapes that Kubernetes, Kueue and the autoscalers give their objects."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from sp_ray_ml.cluster._snapshot import Snapshot

Body = dict[str, Any]
NOW = datetime.datetime(2026, 11, 24, 12, 0, 0, tzinfo=datetime.UTC)
UID = "c1"


def ago(seconds: float) -> str:
    return (NOW - datetime.timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def cluster(workers: int = 1, age_s: float = 30, status: Body | None = None, **spec: Any) -> Body:
    group = {
        "groupName": "worker", "replicas": workers, "minReplicas": 0, "maxReplicas": 100, "numOfHosts": 1,
        "template": {"spec": {"containers": [container("ray-worker")]}},
    }  # fmt: skip
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {
            "name": "demo", "namespace": "lab", "uid": UID, "generation": 1, "resourceVersion": "10",
            "creationTimestamp": ago(age_s), "labels": {},
        },
        "spec": {
            "headGroupSpec": {"template": {"spec": {"containers": [container("ray-head")]}}},
            "workerGroupSpecs": [group],
            **spec,
        },
        "status": {"observedGeneration": 1} if status is None else status,
    }  # fmt: skip


def container(name: str, cpu: str = "4", memory: str = "8Gi", **more: str) -> Body:
    amounts = {"cpu": cpu, "memory": memory, **more}
    return {"name": name, "image": "example/ray:1", "resources": {"limits": amounts, "requests": amounts}}


def pod(
    name: str = "demo-worker-worker-aaaaa", *, age_s: float = 20, node: str = "n1", spec: Body | None = None,
    status: Body | None = None, uid: str = UID, **asked: str,
) -> Body:  # fmt: skip
    head = name.startswith("demo-head")
    main = "ray-head" if head else "ray-worker"
    return {
        "metadata": {
            "name": name, "namespace": "lab", "uid": f"uid-{name}", "creationTimestamp": ago(age_s),
            "labels": {
                "ray.io/cluster": "demo", "ray.io/node-type": "head" if head else "worker",
                "ray.io/group": "headgroup" if head else "worker",
            },
            "ownerReferences": [{"kind": "RayCluster", "name": "demo", "uid": uid}],
        },
        "spec": {"containers": [container(main, **asked)], **({"nodeName": node} if node else {}), **(spec or {})},
        "status": status or {"phase": "Pending", "conditions": []},
    }  # fmt: skip


def ready(name: str = "demo-head-aaaaa") -> Body:
    return pod(name, status={"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})


def unplaced(message: str, *, age_s: float = 90, **more: Any) -> Body:
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod(node="", age_s=age_s, status={"phase": "Pending", "conditions": [scheduled]}, **more)


def waiting(
    reason: str, message: str = "", *, age_s: float = 20, name: str = "demo-worker-worker-aaaaa", **more: Any
) -> Body:
    main = "ray-head" if name.startswith("demo-head") else "ray-worker"
    state = {
        "name": main,
        "ready": False,
        "restartCount": 0,
        "state": {"waiting": {"reason": reason, "message": message}},
        **more,
    }
    return pod(name, age_s=age_s, status={"phase": "Pending", "conditions": [], "containerStatuses": [state]})


def event(
    about: Body, reason: str, message: str, *, seconds: float = 5, new: bool = False, **more: Any
) -> Body:
    """An Event as the kubelet writes it, or as the newer ones look when read through core/v1."""
    subject = {
        "kind": about.get("kind", "Pod"),
        **{key: about["metadata"].get(key) for key in ("name", "uid", "resourceVersion")},
    }
    times: Body = (
        {"eventTime": ago(seconds), "firstTimestamp": None, "lastTimestamp": None}
        if new
        else {"eventTime": None, "firstTimestamp": ago(seconds), "lastTimestamp": ago(seconds), "count": 1}
    )
    return {
        "metadata": {"name": f"{reason}-{seconds}", "creationTimestamp": ago(seconds)},
        "involvedObject": subject, "reason": reason, "message": message, "type": "Warning", **times, **more,
    }  # fmt: skip


def node(
    name: str,
    *,
    cpu: str = "16",
    memory: str = "64Gi",
    gpu: int = 0,
    labels: Body | None = None,
    taints: Sequence[Body] = (),
) -> Body:
    amounts = {"cpu": cpu, "memory": memory, **({"nvidia.com/gpu": str(gpu)} if gpu else {})}
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
        "spec": {"taints": list(taints)},
        "status": {"allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]},
    }


def failing(message: str) -> Body:
    """Status of a cluster whose workers the API server refuses."""
    failure = {
        "type": "ReplicaFailure", "status": "True", "reason": "FailedCreateWorkerPod",
        "message": f"FailedCreateWorkerPod\n{message}",
    }  # fmt: skip
    return {"observedGeneration": 1, "conditions": [failure]}


T4 = {"cloud.google.com/gke-accelerator": "nvidia-tesla-t4"}
A100 = {"nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}}

CLAIMED = {"volumes": [{"name": "home", "persistentVolumeClaim": {"claimName": "demo-home"}}]}
CLAIM = {"kind": "PersistentVolumeClaim", "metadata": {"name": "demo-home", "uid": "pvc1"}}
UNBOUND = (
    "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. preemption: not eligible."
)


def crashed(restarts: int, **ended: Any) -> Body:
    last = {"terminated": {"exitCode": 1, "reason": "Error", **ended}}
    return waiting("CrashLoopBackOff", "back-off 10s", restartCount=restarts, lastState=last)


def running(seconds: float, *, init: bool = False) -> Body:
    state = {
        "name": "wait-gcs-ready" if init else "ray-worker",
        "ready": False,
        "restartCount": 0,
        "state": {"running": {"startedAt": ago(seconds)}},
    }
    pod_ = pod(age_s=seconds + 5)
    key = "initContainerStatuses" if init else "containerStatuses"
    pod_["spec"]["initContainers"] = [container("wait-gcs-ready")]
    pod_["status"] = {"phase": "Pending" if init else "Running", "conditions": [], key: [state]}
    return pod_


def quota(hard: str, used: str) -> Body:
    return {
        "metadata": {"name": "team"},
        "spec": {"hard": {"requests.cpu": hard}},
        "status": {"hard": {"requests.cpu": hard}, "used": {"requests.cpu": used}},
    }


EXCEEDED = 'pods "demo-worker-worker-x" is forbidden: exceeded quota: team, requested: requests.cpu=4, used: requests.cpu={}, limited: requests.cpu={}'


def workload(
    owner: str,
    *,
    seconds: float,
    priority: int = 0,
    uid: str = "other",
    reserved: Body | None = None,
    **spec: Any,
) -> Body:
    """A Workload of Kueue's v1beta1."""
    conditions = [
        {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": "", **(reserved or {})}
    ]
    return {
        "metadata": {
            "name": f"raycluster-{owner}-1a2b3", "namespace": "lab", "uid": f"w-{owner}", "creationTimestamp": ago(seconds),
            "ownerReferences": [{"kind": "RayCluster", "name": owner, "uid": uid}],
        },
        "spec": {"queueName": "gpus", "active": True, "priority": priority, **spec},
        "status": {"conditions": conditions},
    }  # fmt: skip


def in_queue(*workloads: Body, age_s: float = 30) -> Snapshot:
    queued = cluster(suspend=True, age_s=age_s)
    queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpus"
    return Snapshot(queued, workloads=list(workloads), now=NOW)


def situations() -> dict[str, Snapshot]:
    """Clusters in trouble, by what docs/clusters.md calls them."""
    found: dict[str, Snapshot] = {}

    def workers(name: str, *pods: Body, **more: Any) -> None:
        found[name] = Snapshot(cluster(len(pods)), [ready(), *pods], now=NOW, **more)

    t4 = [node("a", gpu=4, labels=T4), node("b", gpu=4, labels=T4), node("c")]
    labels = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
    workers("gpu type", unplaced(labels, spec=A100, **{"nvidia.com/gpu": "1"}), nodes=t4)
    eight = unplaced("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", **{"nvidia.com/gpu": "8"})
    workers("more gpus than a node has", eight, nodes=t4)
    workers(
        "too large", unplaced("0/3 nodes are available: 3 Insufficient memory.", memory="500Gi"), nodes=t4
    )
    hdd = [node("a", labels={"disk": "hdd"}), node("b", labels={"disk": "hdd"})]
    workers("label", unplaced(labels, spec={"nodeSelector": {"disk": "ssd"}}), nodes=hdd)
    taint = {"key": "team", "value": "vision", "effect": "NoSchedule"}
    workers(
        "taint",
        unplaced("0/1 nodes are available: 1 node(s) had untolerated taint(s)."),
        nodes=[node("a", taints=[taint])],
    )
    workers("full", unplaced("0/2 nodes are available: 2 Insufficient cpu."), nodes=[node("a"), node("b")])
    one = unplaced("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", **{"nvidia.com/gpu": "1"})
    grown = "pod triggered scale-up: [{https://www.googleapis.com/compute/v1/projects/p/zones/z/instanceGroups/gke-lab-t4-grp 0->1 (max: 3)}]"
    workers("scaling up", one, nodes=[node("c")], events=[event(one, "TriggeredScaleUp", grown)])
    not_grown = "pod didn't trigger scale-up: 1 max node group size reached"
    workers("not scaling up", one, nodes=[node("c")], events=[event(one, "NotTriggerScaleUp", not_grown)])

    no_class = "no persistent volumes available for this claim and no storage class is set"
    workers("volume", unplaced(UNBOUND, spec=CLAIMED), events=[event(CLAIM, "FailedBinding", no_class)])
    workers("secret", waiting("CreateContainerConfigError", 'secret "s3-key" not found', age_s=60))
    mounting = waiting("ContainerCreating", age_s=60)
    said = 'MountVolume.SetUp failed for volume "code" : configmap "code" not found'
    workers("mount", mounting, events=[event(mounting, "FailedMount", said)])
    denied = "failed to resolve reference: pull access denied, repository does not exist or may require authorization"
    workers(
        "image denied",
        waiting("ImagePullBackOff", f"ErrImagePull: rpc error: code = Unknown desc = {denied}", age_s=60),
    )
    away = 'rpc error: code = Unknown desc = failed to do request: Head "https://r.io/v2/a/manifests/1": dial tcp: i/o timeout'
    workers("image away", waiting("ImagePullBackOff", away, age_s=60))
    looping = crashed(4)
    lines = ['  File "/app/start.py", line 3, in <module>', "ModuleNotFoundError: No module named 'ray'"]
    workers("crash loop", looping, logs={(looping["metadata"]["name"], "ray-worker"): lines})
    unready = running(95)
    probe = 'Readiness probe failed: Get "http://10.0.0.7:52365/api/healthz": connect: connection refused'
    workers("not ready", unready, events=[event(unready, "Unhealthy", probe)])
    workers("head unreachable", running(140, init=True))
    target = {
        "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
        "message": "Taint manager: deleting due to NoExecute taint",
    }  # fmt: skip
    workers("spot", pod(status={"phase": "Running", "conditions": [target]}))
    going = ready("demo-worker-worker-aaaaa")
    going["metadata"] |= {"deletionTimestamp": ago(60), "deletionGracePeriodSeconds": 30}
    found["ending"] = Snapshot(cluster(), [ready(), going], now=NOW)

    refused = 'pods "demo-worker-worker-x" is forbidden: '
    for name, message in {
        "webhook": 'admission webhook "vet.example.com" denied the request: spec.containers[0].image: only images of r.io are allowed.',
        "pod security": f'{refused}violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false (container "ray-worker" must set securityContext.allowPrivilegeEscalation=false)',
        "limit range": f"{refused}maximum memory usage per Container is 4Gi, but limit is 8Gi",
    }.items():
        ranges = [{"metadata": {"name": "lab-limits"}}]
        found[name] = Snapshot(cluster(status=failing(message)), [ready()], limit_ranges=ranges, now=NOW)
    other, notebook = pod("big-worker-worker-a", cpu="20"), pod("notebook", cpu="2")
    other["metadata"]["labels"]["ray.io/cluster"] = "big"
    notebook["metadata"]["labels"] = {}
    found["shared quota"] = Snapshot(
        cluster(status=failing(EXCEEDED.format("27", "28"))), [ready()], quotas=[quota("28", "27")],
        neighbours=[notebook, other], now=NOW,
    )  # fmt: skip

    found["operator silent"] = Snapshot(cluster(age_s=75, status={}), now=NOW)
    why = "couldn't assign flavors to pod set worker: insufficient unused quota for nvidia.com/gpu in flavor t4, 2 more needed"
    found["queue"] = in_queue(
        workload("demo", seconds=60, uid=UID, reserved={"message": why}), workload("before", seconds=300),
        workload("urgent", seconds=5, priority=100), workload("later", seconds=10),
    )  # fmt: skip
    return found
