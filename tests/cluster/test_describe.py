"""What `sp-ray create`, `describe` and `get` print of a cluster, to the column."""

from __future__ import annotations

import datetime
import json

import pytest

from sp_ray_ml import __version__
from sp_ray_ml.cluster._describe import ago, describe, rows

from .recorded import Recording

UTC = datetime.UTC


def group(name, replicas, *, gpus=0, **selector):
    limits = {"cpu": "15", "memory": "48Gi", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    pod = {"containers": [{"name": "ray-worker", "image": "i", "resources": {"limits": limits}}]}
    if selector:
        pod["nodeSelector"] = selector["selector"]
    return {"groupName": name, "replicas": replicas, "template": {"spec": pod}}


def cluster(*groups, ports=()):
    head = group("", 1)["template"]
    head["spec"]["containers"][0]["ports"] = [{"containerPort": port} for port in ports]
    return {
        "metadata": {
            "name": "my-cluster",
            "namespace": "ns",
            "uid": "u",
            "creationTimestamp": "2026-11-24T10:00:00Z",
        },
        "spec": {"headGroupSpec": {"template": head}, "workerGroupSpecs": list(groups)},
    }


def pod(kind, name, *, node="n1", ip="1.2.3.4", ready="True"):
    return {
        "metadata": {
            "name": name, "ownerReferences": [{"uid": "u"}],
            "labels": {"ray.io/node-type": kind, "ray.io/group": "headgroup" if kind == "head" else "worker"},
        },
        "spec": {"serviceAccountName": "robot", "nodeName": node},
        "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": ready}]},
    }  # fmt: skip


BLOCK = f"""\
sp-ray version          {__version__}
server ray version      2.2.0
server python version   3.8.13
service account         robot
head IP                 1.2.3.4
server                  ray://1.2.3.4:10001
dashboard               http://1.2.3.4:8265
notebook server         http://1.2.3.4:8081
OpenVSCode server       http://1.2.3.4:3000
workers                 1

head group
  replicas              1
  CPUs                  15
  GPUs                  0
  memory                48Gi

worker groups
  worker
    replicas            1
    CPUs                15
    GPUs                1
    GPU type            t4
    memory              48Gi"""


def test_the_block_is_the_one_that_first_users_know_to_the_column():
    body = cluster(
        group("worker", 1, gpus=1, selector={"cloud.google.com/gke-accelerator": "nvidia-tesla-t4"}),
        ports=(8081, 3000),
    )
    shown = describe(
        body, [pod("head", "h"), pod("worker", "w")], ray_version="2.2.0", python_version="3.8.13"
    )
    assert str(shown) == BLOCK
    assert shown.state == "ready"
    assert json.loads(json.dumps(shown.as_dict()))["groups"][0]["gpu_type"] == "t4"


def test_what_is_not_there_is_not_made_up():
    shown = describe(cluster(group("worker", 2, gpus=1)), [pod("worker", "w")])
    text = str(shown)
    assert "server ray version      unknown" in text
    assert "head IP                 none yet" in text
    assert "notebook" not in text
    assert "workers                 2 (1 ready)" in text
    assert "  replicas              1 (0 ready)" in text
    assert "    GPU type            any" in text
    assert shown.state == "starting"


def test_the_type_of_a_gpu_is_that_of_the_node_where_none_was_asked_for():
    nodes = {"n1": {"metadata": {"labels": {"nvidia.com/gpu.product": "NVIDIA-L4"}}}}
    shown = describe(cluster(group("worker", 1, gpus=1)), [pod("head", "h"), pod("worker", "w")], nodes=nodes)
    assert shown.groups[0].gpu_type == "l4"


@pytest.mark.parametrize(
    ("name", "t", "state"),
    [
        ("01b-ready-slow", 1, "starting"),
        ("01b-ready-slow", 20, "ready"),
        ("11-suspend", 27.5, "starting"),
        ("11-suspend", 30, "ready"),
    ],
)
def test_the_state_is_that_of_the_pods_and_not_what_the_operator_says(name, t, state):
    snapshot = Recording.load(name).snapshot_at(t)
    assert describe(snapshot.cluster, snapshot.pods).state == state


def test_pods_of_a_former_cluster_of_the_name_do_not_count():
    recording = Recording.load("12d-recreate-same-name")
    misled = [
        snapshot
        for change in recording.changes
        if (snapshot := recording.snapshot_at(change.t)).cluster
        and (snapshot.cluster.get("status") or {}).get("state") == "ready"
        and describe(snapshot.cluster, snapshot.pods).workers_ready == 0
    ]
    assert (
        misled
    )  # there are moments at which the operator says ready of a cluster that has no pod of its own


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 seconds ago"), (1, "1 second ago"), (2, "2 seconds ago"), (60, "1 minute ago"), (7200, "2 hours ago"),
     (86_400 * 3 + 5, "3 days ago"), (-5, "0 seconds ago")],
)  # fmt: skip
def test_times_are_told_as_people_tell_them(seconds, text):
    now = datetime.datetime(2026, 11, 24, tzinfo=UTC)
    assert ago(now - datetime.timedelta(seconds=seconds), now) == text


def test_the_list_has_its_columns():
    meta = {"name": "b", "namespace": "ns", "creationTimestamp": "2026-11-24T10:00:00Z"}
    table = [
        {"metadata": {**meta, "annotations": {"sp-ray/ttl": "3d"}}, "desired workers": 2, "status": "ready", "cpus": "3"},
        {"metadata": {**meta, "name": "a"}, "desired workers": None, "status": ""},
    ]  # fmt: skip
    heading, first, second = rows(table)
    assert heading == ["NAME", "CREATED", "WORKERS"]
    assert (first[0], first[2], second[0], second[2]) == ("a", "0", "b", "2")
    wide = rows(table, wide=True)
    assert wide[0][3:] == ["STATUS", "CPUS", "MEMORY", "GPUS", "NAMESPACE", "IDLE TIMEOUT", "TTL"]
    assert wide[2][3:] == ["ready", "3", "-", "-", "ns", "-", "3d"]
