"""What counts as use of a cluster, as Ray 2.60 and JupyterLab answer it."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from sp_ray_ml.cluster._activity import _judge, find_head

NOW = 1_795_548_955.0
NOBODY = {"driver": {"is_active": "INACTIVE", "reason": None, "timestamp": NOW, "last_activity_at": None}}


def job(status: str, kind: str = "SUBMISSION", **more: Any) -> dict[str, Any]:
    return {"type": kind, "status": status, "entrypoint": "python train.py", "end_time": None, **more}


def actor(namespace: str) -> dict[str, Any]:
    return {"state": "ALIVE", "class_name": "A", "ray_namespace": namespace}


KERNEL = "/venv/bin/python -m ipykernel_launcher -f /home/workbench/kernel-1.json"
IDLE_KERNEL = {"execution_state": "idle", "last_activity": "2026-11-24T19:30:00.123456Z"}


@pytest.mark.parametrize(
    ("jobs", "actors", "kernels", "why"),
    [
        # A job that never calls Ray is none to `/api/component_activities`, which says INACTIVE meanwhile.
        ([job("RUNNING")], [], [], "1 job running"),
        ([job("PENDING"), job("RUNNING")], [], [], "2 jobs running"),
        ([job("RUNNING", "DRIVER")], [], [], "1 driver connected"),
        ([job("SUCCEEDED", "DRIVER")], [actor("e8d997e6")], [], "1 actor alive"),  # detached: Ray Serve, say
        ([], [], [{"execution_state": "busy", "last_activity": "2026-11-24T19:30:00Z"}], "1 notebook kernel busy"),
    ],
)  # fmt: skip
def test_it_is_in_use(jobs, actors, kernels, why):
    found = _judge(jobs, actors, NOBODY, kernels, notebooks=bool(kernels))
    assert (found.state, found.why) == ("active", why)


@pytest.mark.parametrize(
    ("jobs", "actors", "kernels"),
    [
        ([], [], []),
        ([job("SUCCEEDED"), job("FAILED"), job("STOPPED")], [], []),
        ([], [actor("SUPERVISOR_ACTOR_RAY_NAMESPACE"), actor("_ray_internal_dashboard")], []),
        ([job("RUNNING", "DRIVER", entrypoint=KERNEL)], [], [IDLE_KERNEL]),  # connected, and forgotten
    ],
)
def test_it_is_idle(jobs, actors, kernels):
    assert _judge(jobs, actors, NOBODY, kernels, notebooks=bool(kernels)).state == "idle"


def test_a_notebooks_driver_counts_where_jupyter_cannot_be_asked():
    assert (
        _judge([job("RUNNING", "DRIVER", entrypoint=KERNEL)], [], NOBODY, [], notebooks=False).state
        == "active"
    )


def test_the_latest_sign_of_use_is_the_last():
    ended = datetime.datetime(2026, 11, 24, 19, 0, tzinfo=datetime.UTC)
    jobs = [job("SUCCEEDED", end_time=ended.timestamp() * 1000), job("SUCCEEDED", "DRIVER", end_time=0)]
    assert _judge(jobs, [], NOBODY, [], notebooks=False).last == ended
    later = datetime.datetime(2026, 11, 24, 19, 30, 0, 123456, tzinfo=datetime.UTC)
    assert _judge(jobs, [], NOBODY, [IDLE_KERNEL], notebooks=True).last == later
    told = {"driver": {"is_active": "INACTIVE", "last_activity_at": later.timestamp()}}
    assert _judge(jobs, [], told, [], notebooks=False).last == later
    assert _judge([], [], NOBODY, [], notebooks=False).last is None


def test_the_clusters_own_hook_counts_and_its_failure_is_not_idleness():
    hook = {**NOBODY, "editor": {"is_active": "ACTIVE", "reason": "a window is open"}}
    assert _judge([], [], hook, [], notebooks=False).why == "editor: a window is open"
    broken = {**NOBODY, "editor": {"is_active": "ERROR", "reason": "boom"}}
    assert _judge([], [], broken, [], notebooks=False).state == "unknown"


def head(owner: str, phase: str = "Running", state: str = "running", **meta: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "h", "labels": {"ray.io/node-type": "head"}, "ownerReferences": [{"uid": owner}], **meta
        },
        "spec": {"containers": [{"name": "ray-head"}]},
        "status": {"phase": phase, "containerStatuses": [{"name": "ray-head", "state": {state: {}}}]},
    }  # fmt: skip


def test_only_the_clusters_own_running_head_is_asked():
    cluster = {"metadata": {"uid": "mine"}}
    assert find_head([head("mine")], cluster) is not None
    assert find_head([head("mine", "Pending")], cluster) is None
    assert find_head([head("mine", state="waiting")], cluster) is None
    assert find_head([head("former")], cluster) is None
    assert find_head([head("mine", deletionTimestamp="2026-11-24T19:30:00Z")], cluster) is None
