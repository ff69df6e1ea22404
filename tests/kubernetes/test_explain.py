"""Explanations on a real Kubernetes: each cause is brought about for real, with a manifest that anybody could have written."""

from __future__ import annotations

import copy
import secrets
import time
from typing import Any

import pytest

from sp_ray_ml.cluster._explain import explain
from sp_ray_ml.cluster._gather import gather
from sp_ray_ml.cluster._kinds import EVENT, LIMIT_RANGE, POD, QUOTA, RAY_CLUSTER, SERVICE_ACCOUNT
from sp_ray_ml.cluster._nudge import nudge
from sp_ray_ml.cluster._snapshot import Cause
from sp_ray_ml.cluster._watch import Feed, Watch

from .conftest import wait_for

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(600)]

BUSYBOX = "localhost/busybox:local"
FAKE = {"key": "kwok.x-k8s.io/node", "operator": "Exists"}
_PATIENCE_S = 150


def template(name: str, script: str = "", **spec: Any) -> dict[str, Any]:
    """A pod of one container that runs a script of busybox, or what the operator makes it run."""
    amounts = {"limits": {"cpu": "200m", "memory": "64Mi"}, "requests": {"cpu": "50m", "memory": "32Mi"}}
    container: dict[str, Any] = {"name": name, "image": BUSYBOX, "resources": amounts}
    if script:
        # The operator leaves the command alone where this is set, and the container has one.
        container |= {"command": ["/bin/sh", "-c", script]}
    more = {key: spec.pop(key) for key in ("env", "resources", "image", "volumeMounts") if key in spec}
    return {
        "metadata": {"annotations": {"ray.io/overwrite-container-cmd": "true"}},
        "spec": {"containers": [{**container, **more}], **spec},
    }


def manifest(head: dict[str, Any], workers: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    groups = [
        {
            "groupName": "worker",
            "replicas": 1,
            "minReplicas": 0,
            "maxReplicas": 5,
            "rayStartParams": {},
            "template": workers,
        }
    ]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "demo"},
        "spec": {
            "rayVersion": "2.52.0",
            "headGroupSpec": {"rayStartParams": {}, "template": head},
            **({"workerGroupSpecs": groups} if workers else {}),
            **spec,
        },
    }


def on_fake_nodes(name: str, label: str, **more: Any) -> dict[str, Any]:
    """A pod that only seems to run, on this test's own fake nodes."""
    return template(name, tolerations=[FAKE], nodeSelector={"explain": label}, **more)


def explained(api, namespace: str, kind: str, *, permanent: bool | None = None, words: str = "") -> Cause:
    """The explanation once it is of a kind; every change of the cluster's objects is looked at."""
    feed, end = Feed(), time.monotonic() + _PATIENCE_S
    cause = None
    with (
        Watch(api, RAY_CLUSTER, namespace, feed),
        Watch(api, POD, namespace, feed),
        Watch(api, EVENT, namespace, feed),
    ):
        while time.monotonic() < end:
            # Some causes are told by time alone: nothing happens, so nothing is seen.
            feed.take(2.0)
            cause = explain(gather(api, namespace, "demo"))
            if (
                cause
                and cause.kind == kind
                and permanent in {None, cause.permanent}
                and words in cause.message
            ):
                return cause
    raise AssertionError(f"no {kind}, the last explanation was {cause}")


def create(api, namespace: str, body: dict[str, Any]) -> None:
    api.create(RAY_CLUSTER, namespace, body)


SLEEP = "sleep 3600"


def await_quota(api, namespace: str, cpus: str) -> None:
    """Wait until a quota is counted with its limit: until then pods are let in by none, or by the former."""

    def status() -> dict[str, Any]:
        return api.get(QUOTA, namespace, "team").get("status") or {}

    wait_for(
        lambda: (found := status()).get("hard") == {"limits.cpu": cpus} and "used" in found,
        lambda: f"the quota to be counted: {status()}",
    )


def test_a_quota_that_is_too_small_and_then_is_raised(api, namespace):
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "team"},
        "spec": {"hard": {"limits.cpu": "300m"}},
    }
    api.create(QUOTA, namespace, quota)
    await_quota(api, namespace, "300m")
    create(api, namespace, manifest(template("ray-head", SLEEP), template("ray-worker", SLEEP)))
    cause = explained(api, namespace, "quota", permanent=True)  # with the head's pod seen, too
    assert cause.component == "worker group worker"
    assert cause.permanent
    assert cause.message.startswith("quota team is 0.1 CPUs short (limits.cpu): 1 more worker needs 0.2 CPUs")
    assert cause.details == ("cluster demo (this one) uses 0.2 CPUs",)
    api.patch(QUOTA, namespace, "team", {"spec": {"hard": {"limits.cpu": "4"}}})
    await_quota(api, namespace, "4")
    # The operator does not notice; a nudge makes it look, however long it would have waited.
    nudge(api, namespace, "demo")
    feed, pods = Feed(), []
    with Watch(api, POD, namespace, feed) as watch:
        while len(pods) < 2:
            assert feed.take(120), "nothing happened for two minutes"
            pods = watch.objects()
    cause = explain(gather(api, namespace, "demo"))
    assert cause is None or cause.kind not in {"quota", "retry"}


def test_a_quota_that_wants_limits(api, namespace):
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "team"},
        "spec": {"hard": {"limits.cpu": "4"}},
    }
    api.create(QUOTA, namespace, quota)
    await_quota(api, namespace, "4")
    create(api, namespace, manifest(template("ray-head", SLEEP, resources={})))
    assert explained(api, namespace, "quota_needs_limits").permanent


def test_a_gpu_type_that_no_node_has(api, namespace, fake_node):
    label = secrets.token_hex(3)
    fake_node(
        "--gpu",
        "4",
        "--label",
        f"explain={label}",
        "--label",
        "cloud.google.com/gke-accelerator=nvidia-tesla-t4",
    )
    workers = on_fake_nodes("ray-worker", label)
    workers["spec"]["nodeSelector"] |= {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}
    create(api, namespace, manifest(on_fake_nodes("ray-head", label), workers))
    cause = explained(api, namespace, "unschedulable", words="no node has a GPU of type a100: ")
    assert cause.component == "worker group worker"
    assert "t4 (" in cause.message


def test_more_gpus_than_a_node_has(api, namespace, fake_node):
    label = secrets.token_hex(3)
    fake_node("--gpu", "4", "--label", f"explain={label}")
    asked = {name: {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": "8"} for name in ("limits", "requests")}
    create(
        api,
        namespace,
        manifest(on_fake_nodes("ray-head", label), on_fake_nodes("ray-worker", label, resources=asked)),
    )
    explained(
        api, namespace, "unschedulable", words="no node of that kind has 8 GPUs: the largest has 4 GPUs"
    )


def test_a_taint(api, namespace, fake_node):
    label = secrets.token_hex(3)
    fake_node("--cpu", "4", "--label", f"explain={label}")
    workers = on_fake_nodes("ray-worker", label)
    workers["spec"]["tolerations"] = []
    create(api, namespace, manifest(on_fake_nodes("ray-head", label), workers))
    words = "1 node would do, but keeps its pods off by the taint kwok.x-k8s.io/node=fake:NoSchedule"
    assert "tolerations" in explained(api, namespace, "unschedulable", words=words).remedy


def test_full_nodes(api, namespace, fake_node):
    label = secrets.token_hex(3)
    fake_node("--cpu", "4", "--label", f"explain={label}")
    large = {name: {"cpu": "3", "memory": "1Gi"} for name in ("limits", "requests")}
    pods = (on_fake_nodes(name, label, resources=large) for name in ("ray-head", "ray-worker"))
    create(api, namespace, manifest(*pods))
    words = "the one node that could take it is full: too few CPUs free"
    assert not explained(api, namespace, "unschedulable", words=words).permanent


def test_an_image_that_cannot_be_pulled(api, namespace):
    create(api, namespace, manifest(template("ray-head", SLEEP, image="localhost/no-such-image:1")))
    cause = explained(api, namespace, "image")
    assert cause.component == "head"
    assert cause.message.startswith("image localhost/no-such-image:1 cannot be pulled")


def test_a_name_that_is_none_of_an_image(api, namespace):
    create(api, namespace, manifest(template("ray-head", SLEEP, image="Not/A/Name:1")))
    cause = explained(api, namespace, "image")
    assert cause.permanent


def test_an_init_container_of_a_worker_whose_image_cannot_be_pulled(api, namespace):
    create(
        api,
        namespace,
        manifest(
            template("ray-head", SLEEP), template("ray-worker", SLEEP, image="localhost/no-such-image:1")
        ),
    )
    assert explained(api, namespace, "image").component == "worker group worker"


def test_a_secret_that_is_not_there(api, namespace):
    env = [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s3-key", "key": "key"}}}]
    create(api, namespace, manifest(template("ray-head", SLEEP, env=env)))
    cause = explained(api, namespace, "missing_object")
    assert (
        cause.message
        == f"there is no Secret s3-key in namespace {namespace}, and container ray-head needs it"
    )
    assert explained(api, namespace, "missing_object", permanent=True)


def test_a_secret_that_is_not_there_to_mount(api, namespace):
    volumes = [{"name": "key", "secret": {"secretName": "s3-key"}}]
    mounts = [{"name": "key", "mountPath": "/key"}]
    create(api, namespace, manifest(template("ray-head", SLEEP, volumes=volumes, volumeMounts=mounts)))
    cause = explained(api, namespace, "missing_object")
    assert (
        cause.message == f"there is no Secret s3-key in namespace {namespace}, and volume key is made of it"
    )


def test_a_volume_claim_that_is_not_there(api, namespace):
    volumes = [{"name": "home", "persistentVolumeClaim": {"claimName": "my-home"}}]
    create(api, namespace, manifest(template("ray-head", SLEEP, volumes=volumes)))
    assert (
        explained(api, namespace, "volume").message
        == f"there is no volume claim my-home in namespace {namespace}"
    )


def test_a_limit_range(api, namespace):
    limits = [{"type": "Container", "max": {"memory": "48Mi"}}]
    api.create(
        LIMIT_RANGE,
        namespace,
        {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": {"limits": limits}},
    )
    create(api, namespace, manifest(template("ray-head", SLEEP)))
    cause = explained(api, namespace, "limit_range")
    assert cause.permanent
    assert (
        "the limit range small refuses the head's pod: maximum memory usage of a container is 48Mi, but limit is 64Mi"
        in cause.message
    )


def test_a_service_account_that_is_not_there(api, namespace):
    create(api, namespace, manifest(template("ray-head", SLEEP, serviceAccountName="nobody")))
    cause = explained(api, namespace, "service_account")
    assert cause.message == f"there is no service account nobody in namespace {namespace}"
    assert f"kubectl create serviceaccount nobody -n {namespace}" in cause.remedy
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody"}}
    api.create(SERVICE_ACCOUNT, namespace, account)
    later = explain(gather(api, namespace, "demo"))
    # It is not said once it is not so, whether or not the operator has looked again.
    assert later is None or later.kind == "retry"


def test_a_pod_that_the_api_server_refuses(api, namespace):
    wrong = {"limits": {"cpu": "100m", "memory": "64Mi"}, "requests": {"cpu": "1", "memory": "64Mi"}}
    create(api, namespace, manifest(template("ray-head", SLEEP, resources=wrong)))
    cause = explained(api, namespace, "invalid_pod")
    assert "spec.headGroupSpec.template.spec.containers[0].resources.requests" in cause.message


def test_a_crash_loop_has_the_end_of_its_log(api, namespace):
    script = (
        "for i in $(seq 30); do echo line $i; done; echo as $DB_PASSWORD with api_key=abcdef123456; "
        "echo the database is gone; exit 3"
    )
    env = [{"name": "DB_PASSWORD", "value": "open-sesame"}]
    create(api, namespace, manifest(template("ray-head", script, env=env)))
    cause = explained(api, namespace, "crash_loop")
    assert cause.component == "head"
    assert "with exit code 3" in cause.message
    assert cause.details[-2:] == ("as *** with api_key=***", "the database is gone")
    assert len(cause.details) == 20


def test_a_container_that_is_killed_for_memory(api, namespace):
    script = "x=a; while true; do x=$x$x; done"
    create(api, namespace, manifest(template("ray-head", script)))
    cause = explained(api, namespace, "out_of_memory")
    assert "more than its limit of 64Mi" in cause.message
    assert "--memory-in-head 128Mi" in cause.remedy


def test_a_command_that_is_not_there(api, namespace):
    head = template("ray-head", SLEEP)
    head["spec"]["containers"][0]["command"] = ["/no/such/program"]
    create(api, namespace, manifest(head))
    explained(api, namespace, "command", words="has no /no/such/program")


def test_two_groups_of_one_name(api, namespace, fake_node):
    label = secrets.token_hex(3)
    fake_node("--label", f"explain={label}")
    body = manifest(on_fake_nodes("ray-head", label), on_fake_nodes("ray-worker", label))
    body["spec"]["workerGroupSpecs"].append(copy.deepcopy(body["spec"]["workerGroupSpecs"][0]))
    create(api, namespace, body)
    assert explained(api, namespace, "duplicate_groups").permanent
    api.delete(RAY_CLUSTER, namespace, "demo")


def test_a_cluster_that_somebody_else_is_to_run(api, namespace):
    create(api, namespace, manifest(template("ray-head", SLEEP), managedBy="kueue.x-k8s.io/multikueue"))
    explained(api, namespace, "managed_by_other")


def test_a_spec_that_the_operator_refuses(api, namespace):
    workers = template("ray-worker", SLEEP)
    body = manifest(template("ray-head", SLEEP), workers)
    body["spec"]["workerGroupSpecs"][0] |= {"minReplicas": 7, "maxReplicas": 2}
    create(api, namespace, body)
    assert explained(api, namespace, "invalid_spec").permanent


def test_a_suspended_cluster(api, namespace):
    create(api, namespace, manifest(template("ray-head", SLEEP), suspend=True))
    assert "sp-ray resume cluster demo" in explained(api, namespace, "suspended").remedy


def test_a_cluster_that_starts_well_is_never_explained(api, namespace, fake_node):
    label = secrets.token_hex(3)
    fake_node("--label", f"explain={label}")
    create(api, namespace, manifest(on_fake_nodes("ray-head", label), on_fake_nodes("ray-worker", label)))
    feed = Feed()
    with Watch(api, RAY_CLUSTER, namespace, feed), Watch(api, POD, namespace, feed):
        while True:
            feed.take(5)
            snapshot = gather(api, namespace, "demo")
            cause, status = explain(snapshot), (snapshot.cluster or {}).get("status") or {}
            # An operator that is slow to begin is taken for none.
            assert cause is None or (cause.kind == "operator_silent" and not status), cause
            if status.get("readyWorkerReplicas") == 1:
                break
