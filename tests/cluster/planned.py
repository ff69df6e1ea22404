"""Requests and what Kubernetes has, by hand, and what docs/clusters.md shows of plans, manifests and versions."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from pathlib import Path
from typing import Any

import yaml

from sp_ray_ml.cli._output import print_error
from sp_ray_ml.cluster._features import Features
from sp_ray_ml.cluster._gpu_types import gpu_terms
from sp_ray_ml.cluster._permissions import needs
from sp_ray_ml.cluster._plan import Plan, plan_from
from sp_ray_ml.cluster._plan_facts import PlanFacts
from sp_ray_ml.cluster._validate import read_file
from sp_ray_ml.cluster._versions import check_versions
from sp_ray_ml.errors import SpRayError, VersionMismatchError

KNOWN = Features("1.7")


def template(
    name: str, cpu: str, memory: str, *, gpus: int = 0, gpu_type: str = "", **spec: Any
) -> dict[str, Any]:
    limits = {"cpu": cpu, "memory": memory}
    if gpus:
        limits["nvidia.com/gpu"] = str(gpus)
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    if gpu_type:
        terms = [{"matchExpressions": expressions} for expressions in gpu_terms(gpu_type)]
        spec["affinity"] = affinity(terms)
    return {"spec": {"containers": [{"name": name, "image": "ray", "resources": {"limits": limits}}], **spec}}


def affinity(terms: list[dict[str, Any]]) -> dict[str, Any]:
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


def manifest(replicas: int = 2, most: int = 2, **worker: Any) -> dict[str, Any]:
    wanted = {"cpu": "4", "memory": "8Gi", **worker}
    return {
        "apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "mine", "namespace": "lab"},
        "spec": {
            "rayVersion": "2.60.0", "headGroupSpec": {"template": template("ray-head", "2", "4Gi")},
            "workerGroupSpecs": [
                {"groupName": "w", "replicas": replicas, "minReplicas": 0, "maxReplicas": most,
                 "template": template("ray-worker", **wanted)},
            ],
        },
    }  # fmt: skip


def node(name: str, cpu: str = "16", memory: str = "64Gi", *, gpus: int = 0, **more: Any) -> dict[str, Any]:
    given = {"cpu": cpu, "memory": memory, "pods": "110"}
    if gpus:
        given["nvidia.com/gpu"] = str(gpus)
    return {
        "metadata": {"name": name, "labels": more.get("labels", {})},
        "spec": {key: more[key] for key in ("taints", "unschedulable") if key in more},
        "status": {
            "allocatable": given,
            "conditions": [{"type": "Ready", "status": more.get("ready", "True")}],
        },
    }


def pod(
    where: str,
    cpu: str,
    memory: str = "1Gi",
    *,
    namespace: str = "other",
    cluster: str = "",
    daemon: bool = False,
) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": "p", "namespace": namespace}
    if cluster:
        meta["labels"] = {"ray.io/cluster": cluster}
    if daemon:
        meta["ownerReferences"] = [{"kind": "DaemonSet", "name": "d"}]
    container = {"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}
    return {
        "metadata": meta,
        "spec": {"nodeName": where, "containers": [container]},
        "status": {"phase": "Running"},
    }


def quota(hard: dict[str, str], used: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "team"},
        "spec": {"hard": hard, **spec},
        "status": {"hard": hard, "used": used or {}},
    }


def made(wanted: dict[str, Any], nodes: list[dict[str, Any]] | None = None, **facts: Any) -> Plan:
    shown = nodes if nodes is not None else [node("a"), node("b")]
    return plan_from(PlanFacts(features=KNOWN, nodes=shown, **facts), wanted)


# --- what the guide shows -----------------------------------------------------------------------------------------------

T4 = {"nvidia.com/gpu.product": "Tesla-T4"}
A100 = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}


def _lab() -> list[dict[str, Any]]:
    """A small lab's nodes."""
    return [node("a"), node("b"), node("c", gpus=4, labels=T4), node("d", gpus=8, labels=A100)]


def _file(text: str) -> list[str]:
    """What the command line prints of the mistakes in a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ray-cluster.yaml"
        file.write_text(text)
        said = io.StringIO()
        try:
            read_file(file)
        except SpRayError as error:
            with contextlib.redirect_stderr(said):
                print_error(error)
        return said.getvalue().replace(f"{folder}/", "").splitlines()


def _mismatch(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    try:
        check_versions(here, there, for_what="client")
    except VersionMismatchError as error:
        return [f"{type(error).__name__}: {error}"]
    raise AssertionError("they fit")


def situations() -> dict[str, tuple[str, list[str]]]:
    """By what docs/clusters.md calls them: the command, and what it prints."""
    found: dict[str, tuple[str, list[str]]] = {}

    def planned(
        name: str, options: str, wanted: dict[str, Any], nodes: list[dict[str, Any]], **facts: Any
    ) -> None:
        facts = {"permissions": dict.fromkeys(needs(()), True), **facts}
        found[name] = (f"$ sp-ray plan cluster mine -n lab {options}", made(wanted, nodes, **facts).lines())

    small = "--cpus-in-head 2 --memory-in-head 4Gi --cpus-per-worker 4 --memory-per-worker 8Gi"
    planned("fits", f"{small} --worker-replicas 2", manifest(), _lab())
    users = [
        pod("a", "14", "40Gi", namespace="lab", cluster="theirs"),
        pod("b", "14", namespace="lab", cluster="other"),
    ]
    more = quota({"requests.cpu": "32", "pods": "10"}, {"requests.cpu": "28", "pods": "2"})
    busy = [*users, pod("c", "12"), pod("d", "16")]
    planned(
        "short",
        f"{small} --worker-replicas 2",
        manifest(),
        _lab(),
        pods=busy,
        namespace_pods=users,
        quotas=[more],
    )
    typed = manifest(gpus=1, gpu_type="l4")
    planned("no such gpu", f"{small} --gpus-per-worker 1 --worker-gpu-type l4", typed, _lab())
    cloud = [node("a", labels={"cloud.google.com/gke-nodepool": "default"})]
    planned("cloud", f"{small} --gpus-per-worker 1 --worker-gpu-type l4", typed, cloud)
    weak = {need: need.kind.name == "RayCluster" for need in needs(())}
    found["little permission"] = (
        f"$ sp-ray plan cluster mine -n lab {small}",
        plan_from(
            PlanFacts(KNOWN, None, None, None, None, None, None, None, permissions=weak), manifest()
        ).lines(),
    )

    wrong = copy.deepcopy(manifest())
    wrong["metadata"]["name"] = "My.Cluster"
    wrong["spec"]["workerGroupSpecs"].append(copy.deepcopy(wrong["spec"]["workerGroupSpecs"][0]))
    wrong["spec"]["workerGroupSpecs"][0]["minReplicas"] = 5
    wrong["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] = (
        "48GB"
    )
    wrong["spec"]["authOption"] = {"mode": "token"}
    text = yaml.safe_dump(wrong, sort_keys=False)
    found["manifest"] = ("$ sp-ray create cluster --file ray-cluster.yaml", _file(text))

    here = {"ray": "2.60.0", "python": "3.11.9", "packages": {"numpy": "2.2.1"}}
    for name, there in (
        ("other ray", {**here, "ray": "2.58.0"}),
        ("other python", {**here, "python": "3.10.14", "packages": {"numpy": "1.26.4"}}),
    ):
        found[name] = ('>>> RayCluster.get_cluster("mine", "lab").connect()', _mismatch(here, there))
    return found
