"""Ready means usable, on a real Kubernetes: pods on fake nodes; Ray's own node table on a real head and worker."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sp_ray_ml.cluster._api import Api
from sp_ray_ml.cluster._kinds import CLUSTER_LABEL, NODE, POD, RAY_CLUSTER
from sp_ray_ml.cluster._snapshot import condition, is_ready, own_pods
from sp_ray_ml.cluster._wait import wait_until
from sp_ray_ml.cluster._watch import Feed, Watch
from sp_ray_ml.errors import ClusterNotFoundError, ClusterTimeoutError, ClusterUnhealthyError

from .conftest import wait_for

pytestmark = pytest.mark.kubernetes
Body = dict[str, Any]


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    left = [thread for thread in threading.enumerate() if thread.name.startswith("watch-")]
    for thread in left:  # one that is told to end may be a moment about it
        thread.join(60)
    assert not [thread for thread in left if thread.is_alive()]


@pytest.fixture
def fake(fake_node):
    """What a pod's spec needs to go to a fake node of this test."""
    label = f"ready-{time.monotonic_ns()}"
    fake_node("--cpu", "64", "--memory", "256Gi", "--label", f"pool={label}")
    return {
        "nodeSelector": {"pool": label},
        "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
    }


def manifest(
    replicas: int = 2, *, pod: Body | None = None, image: str = "fake:2.60.0", **limits: str
) -> Body:
    def template(name: str) -> Body:
        resources = {
            "limits": {"cpu": "1", "memory": "1Gi", **limits},
            "requests": {"cpu": "100m", "memory": "1Gi"},
        }
        return {
            "spec": {**(pod or {}), "containers": [{"name": name, "image": image, "resources": resources}]}
        }

    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "mine"},
        "spec": {
            "rayVersion": "2.60.0",
            "headGroupSpec": {"rayStartParams": {}, "template": template("ray-head")},
            "workerGroupSpecs": [
                {
                    "groupName": "worker", "replicas": replicas, "minReplicas": 0, "maxReplicas": 10,
                    "rayStartParams": {}, "template": template("ray-worker"),
                }
            ],
        },
    }  # fmt: skip


def create(api: Api, namespace: str, body: Body) -> str:
    return str(api.create(RAY_CLUSTER, namespace, body)["metadata"]["uid"])


def scale(api: Api, namespace: str, replicas: int) -> None:
    api.patch(
        RAY_CLUSTER, namespace, "mine",
        [{"op": "replace", "path": "/spec/workerGroupSpecs/0/replicas", "value": replicas}], type="json",
    )  # fmt: skip


def ready_now(api: Api, namespace: str) -> list[str]:
    """Which kind each of the cluster's own ready pods is, asked anew."""
    cluster = api.get(RAY_CLUSTER, namespace, "mine")
    pods, _ = api.list(POD, namespace, labels=f"{CLUSTER_LABEL}=mine")
    return sorted(
        pod["metadata"]["labels"]["ray.io/node-type"] for pod in own_pods(cluster, pods) if is_ready(pod)
    )


def test_a_cluster_is_ready_with_its_last_pod_and_after_each_scaling(api, namespace, fake):
    uid = create(api, namespace, manifest(2, pod=fake))
    wait_until(api, namespace, "mine", "pods", 120, uid=uid)
    assert ready_now(api, namespace) == ["head", "worker", "worker"]
    for replicas in (5, 1):
        scale(api, namespace, replicas)
        wait_until(api, namespace, "mine", "pods", 120, uid=uid)
        assert ready_now(api, namespace) == ["head", *["worker"] * replicas]


def test_a_cluster_made_anew_is_not_ready_on_the_pods_of_the_former(api, namespace, fake):
    first = create(api, namespace, manifest(2, pod=fake))
    wait_until(api, namespace, "mine", "pods", 120, uid=first)
    api.delete(RAY_CLUSTER, namespace, "mine")
    second = create(api, namespace, manifest(2, pod=fake))
    with pytest.raises(ClusterNotFoundError, match="another of its name"):
        wait_until(api, namespace, "mine", "pods", 120, uid=first)
    snapshot = wait_until(api, namespace, "mine", "pods", 120, uid=second)
    owners = {
        pod["metadata"]["ownerReferences"][0]["uid"] for pod in own_pods(snapshot.cluster, snapshot.pods)
    }
    assert owners == {second}
    wait_until(api, namespace, "mine", "deleted", 120, uid=first)


def test_suspended_resumed_and_deleted(api, namespace, fake):
    uid = create(api, namespace, manifest(1, pod=fake))
    wait_until(api, namespace, "mine", "pods", 120, uid=uid)
    api.patch(RAY_CLUSTER, namespace, "mine", {"spec": {"suspend": True}})
    wait_until(api, namespace, "mine", "suspended", 120, uid=uid)
    assert api.list(POD, namespace)[0] == []
    api.patch(RAY_CLUSTER, namespace, "mine", {"spec": {"suspend": False}})
    wait_until(api, namespace, "mine", "pods", 120, uid=uid)
    assert ready_now(api, namespace) == ["head", "worker"]
    api.delete(RAY_CLUSTER, namespace, "mine")
    wait_until(api, namespace, "mine", "deleted", 120, uid=uid)
    assert api.list(POD, namespace)[0] == []


def test_workers_that_fit_nowhere_are_waited_for_and_named(api, namespace, fake):
    uid = create(api, namespace, manifest(1, pod=fake, **{"nvidia.com/gpu": "1"}))

    def refused():
        found = api.list(POD, namespace, labels="ray.io/node-type=worker")[0]
        return [pod for pod in found if (condition(pod, "PodScheduled") or {}).get("status") == "False"]

    wait_for(refused, lambda: "a worker that no node takes")
    told = []
    with pytest.raises(ClusterTimeoutError) as caught:
        # Once the worker is a minute old that is final, and another error.
        wait_until(
            api, namespace, "mine", "pods", 30, uid=uid, on_change=lambda states, cause: told.append(cause)
        )
    assert "not ready (pods) after 30 s" in caught.value.message
    assert told[0] is None
    assert told[-1] is not None
    assert "gpu" in told[-1].message.lower()


def test_a_spec_that_the_operator_refuses_fails_at_once(api, namespace, fake):
    body = manifest(1, pod=fake)
    body["spec"]["workerGroupSpecs"][0].update(minReplicas=5, maxReplicas=2)
    uid = create(api, namespace, body)
    with pytest.raises(ClusterUnhealthyError, match="minReplicas"):
        wait_until(api, namespace, "mine", "pods", 120, uid=uid)


def test_a_cluster_deleted_by_another_ends_the_wait(api, namespace, fake):
    uid = create(api, namespace, manifest(1, pod=fake, **{"nvidia.com/gpu": "1"}))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            wait_until, api, namespace, "mine", "pods", 120, uid=uid, explain=lambda *_: None
        )
        feed = Feed()
        with Watch(api, POD, namespace, feed):
            while (change := feed.next(60)) and change.type != "ADDED":
                pass
        api.delete(RAY_CLUSTER, namespace, "mine")
        with pytest.raises(ClusterNotFoundError, match="deleted"):
            waiting.result(60)


def test_a_watch_over_the_real_connection_sees_everything_and_ends_at_once(api, namespace, fake):
    """TLS, its shutdown from another thread, the server's own end of a watch, and resuming after it."""
    feed = Feed()
    with Watch(api, POD, namespace, feed, open_s=1) as pods:
        uid = create(api, namespace, manifest(2, pod=fake))
        wait_until(api, namespace, "mine", "pods", 120, uid=uid)
        api.delete(RAY_CLUSTER, namespace, "mine")
        wait_until(api, namespace, "mine", "deleted", 120, uid=uid)
        seen: list[tuple[str, str]] = []
        while sum(type == "DELETED" for type, _ in seen) < 3:
            changes = feed.take(30)
            assert changes, seen
            seen += [(change.type, change.object["metadata"]["uid"]) for change in changes if change.object]
    pods._thread.join(60)
    assert not pods._thread.is_alive()
    for uid in {uid for _, uid in seen}:
        types = [type for type, of in seen if of == uid]
        assert types[0] == "ADDED"
        assert types[-1] == "DELETED"
        assert set(types[1:-1]) <= {"MODIFIED"}


# --- Ray's half ---------------------------------------------------------------------------------------------------


def has_image(api: Api, image: str) -> bool:
    return any(
        image in (each.get("names") or ())
        for node in api.list(NODE, None)[0]
        for each in node["status"].get("images") or ()
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ready_means_that_ray_itself_has_every_worker(api, namespace, image):
    if image.startswith("localhost/") and not has_image(api, image):
        pytest.skip(f"no node has the image {image}; tests/kubernetes/image.sh makes it")
    body = manifest(1, image=image)
    body["spec"]["authOptions"] = {"mode": "token"}
    body["spec"]["workerGroupSpecs"][0]["rayStartParams"] = {"num-cpus": "3"}
    uid = create(api, namespace, body)
    told: list[str] = []
    snapshot = wait_until(
        api, namespace, "mine", "ready", 400, uid=uid,
        on_change=lambda states, _: told.extend(f"{s.component}: {s.waits_for}" for s in states),
    )  # fmt: skip
    assert ready_now(api, namespace) == ["head", "worker"]

    from sp_ray_ml.cluster._dashboard import dashboard_of
    from sp_ray_ml.cluster._ray_state import joined, nodes, versions

    with dashboard_of(api, snapshot.cluster) as dashboard:
        table = nodes(dashboard.get)
        assert sorted((node.is_head, node.cpus) for node in table) == [(False, 3), (True, 1)]
        assert len(joined(snapshot.pods, table)) == 2
        assert versions(dashboard.get)["ray"].count(".") == 2

    wait_until(api, namespace, "mine", "workers=1", 60, uid=uid)
    scale(api, namespace, 2)
    wait_until(api, namespace, "mine", "ready", 400, uid=uid)
    with dashboard_of(api, snapshot.cluster) as dashboard:
        assert sum(not node.is_head for node in nodes(dashboard.get)) == 2
