"""What we say of the objects that the real Kueue 0.19.2 made of ours: kueue-0.19.2.json, recorded on 2026-11-28."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from sp_ray_ml.cluster._agent_manifest import cluster_objects
from sp_ray_ml.cluster._causes_queue import queue_cause
from sp_ray_ml.cluster._kinds import RAY_CLUSTER
from sp_ray_ml.cluster._lifetime_rules import Activity, Lifetime, decide, waits_in_queue
from sp_ray_ml.cluster._lifetime_text import read_time
from sp_ray_ml.cluster._manifest import Facts, build
from sp_ray_ml.cluster._permissions import agent_needs
from sp_ray_ml.cluster._scale import scale
from sp_ray_ml.cluster._snapshot import Snapshot
from sp_ray_ml.cluster.settings import ClusterSettings
from sp_ray_ml.errors import ConfigError

SEEN = json.loads((Path(__file__).parent / "kueue-0.19.2.json").read_text())


def cause(moment, name, *, pending=None, change=None):
    objects = copy.deepcopy(SEEN[moment])
    works = [each for each in objects if each["kind"] in (None, "Workload")]
    mine = next(each for each in works if each["metadata"]["ownerReferences"][0]["name"] == name)
    if change:
        next(c for c in mine["status"]["conditions"] if c["type"] == "QuotaReserved").update(change)
    owner = mine["metadata"]["ownerReferences"][0]
    item = next((each for each in objects if each["metadata"]["uid"] == owner["uid"]), None)
    item = item or {"kind": owner["kind"], "metadata": {"uid": owner["uid"], "namespace": "team-lab"}}
    snapshot = Snapshot(cluster=item, workloads=works, pending=pending)
    return queue_cause(snapshot, item, mine["spec"]["queueName"], suspended=True)


WHY = (
    "couldn't assign flavors to pod set head: insufficient unused quota for cpu in flavor default-flavor, 50m more "
    "needed; couldn't assign flavors to pod set worker: insufficient unused quota for cpu in flavor default-flavor, "
    "2050m more needed"
)


def test_the_place_and_the_reason_are_told_together_the_place_by_kueues_own_view():
    assert cause("waiting", "second-79235").message == f"it waits in queue lab, number 2 of 2: {WHY}"
    pending = copy.deepcopy(SEEN["pending"])
    assert (
        cause("waiting", "second-79235", pending=pending).message
        == f"it waits in queue lab, number 2 of 2: {WHY}"
    )
    pending[1]["positionInClusterQueue"] = 6  # other namespaces' queues are before it
    found = cause("waiting", "second-79235", pending=pending)
    assert found.message == (
        f"it waits in queue lab, number 2 of 2 (number 7 of all queues that share its quota): {WHY}"
    )
    assert found.details == ("before it: RayCluster third-e3b2b, since 2026-11-28T10:00:29Z",)
    alone = Snapshot(
        cluster=(item := SEEN["waiting"][1]), pending=SEEN["pending"]
    )  # Workloads may not be read
    assert queue_cause(alone, item, "lab", suspended=True).message == "it waits in queue lab, number 2 of 2"


@pytest.mark.parametrize(
    ("moment", "name", "said"),
    [
        ("hold", "fourth-6c79c", "queue nowhere cannot take it: LocalQueue nowhere doesn't exist"),
        ("hold", "second-79235", "queue lab cannot take it: ClusterQueue lab is inactive"),
        ("drain", "first-89819", "queue lab cannot take it: ClusterQueue lab is inactive"),
        ("evicting", "mine", "its place in queue lab was deactivated: The workload is deactivated"),
    ],
)
def test_a_queue_that_takes_nothing_says_so(moment, name, said):
    assert cause(moment, name).message == said


def test_what_is_put_out_is_not_said_to_be_about_to_run():
    objects = copy.deepcopy(SEEN["evicting"])
    objects[1]["spec"]["active"] = (
        True  # as when another one needs its room: it has its quota until its pods are gone
    )
    found = queue_cause(
        Snapshot(cluster=objects[0], workloads=objects[1:]), objects[0], "lab", suspended=True
    )
    assert found.message == "queue lab takes its place away from it: The workload is deactivated"


def test_what_ran_on_what_was_borrowed_and_gave_way_waits_and_says_so():
    assert cause("preempted", "borrows").message == (
        "it waits in queue lab, number 1 of 1 (another team has taken back what was its own): couldn't assign flavors to "
        "pod set worker: insufficient unused quota for cpu in flavor default-flavor, 2 more needed"
    )
    item = SEEN["preempted"][0]
    assert waits_in_queue(item)  # and is not taken for suspended by somebody of us


@pytest.mark.parametrize(
    ("message", "never"),
    [
        (
            "couldn't assign flavors to pod set head: insufficient quota for cpu in flavor default-flavor, previously "
            "considered podsets requests (0) + current podset request (20) > maximum capacity (6)",
            True,
        ),
        (
            "couldn't assign flavors to pod set worker: insufficient quota for cpu in flavor a, previously considered "
            "podsets requests (0) + current podset request (20) > maximum capacity (6), insufficient unused quota for cpu "
            "in flavor b, 2 more needed",
            False,
        ),
    ],
)
def test_what_no_flavor_of_a_queue_can_hold_is_not_waited_for(message, never):
    found = cause("hold", "fifth-d9e9b", change={"reason": "Pending", "message": message})
    assert found.permanent == never
    assert ("can never take it" in found.message) == never
    assert found.message.endswith(message)


def test_what_we_suspend_in_a_queue_is_suspended_and_what_waits_there_is_not():
    item, work = SEEN["suspended"]
    assert queue_cause(Snapshot(cluster=item, workloads=[work]), item, "lab", suspended=True) is None
    waits = copy.deepcopy(next(each for each in SEEN["waiting"] if each["metadata"]["name"] == "third-e3b2b"))
    waits["metadata"]["annotations"] = {"sp-ray/ttl": "1h"}
    now = "2026-11-28T12:00:00Z"
    decision = decide(Lifetime.of(waits), Activity("absent", ""), read_time(now))
    # Its idle time begins when it runs, not while it waits.
    assert (decision.action, dict(decision.changes)) == ("nothing", {"sp-ray/last-activity": now})


def test_a_cluster_that_runs_in_a_queue_is_not_scaled_as_kueue_would_stop_it():
    admitted = copy.deepcopy(SEEN["raycluster-admitted"][0])
    admitted["spec"]["workerGroupSpecs"] = [{"groupName": "worker", "replicas": 1}]

    class Here:
        def get(self, kind, namespace, name):
            assert (kind, namespace, name) == (RAY_CLUSTER, "team-lab", "mine")
            return admitted

        def patch(self, *_, **__):
            return {"patched": True}

    with pytest.raises(ConfigError, match="Kueue would stop all of it"):
        scale(Here(), "team-lab", "mine", "worker", 2)
    admitted["spec"]["suspend"] = True
    assert scale(Here(), "team-lab", "mine", "worker", 2) == {"patched": True}


def test_only_where_a_cluster_is_in_a_queue_the_agent_gets_the_right_by_which_it_is_suspended_there():
    facts = Facts("team-lab", "ray", "ray", "2.60.0")
    labels = {"kueue.x-k8s.io/queue-name": "lab"}
    queued, alone = (build(ClusterSettings(name="mine", labels=each), facts) for each in (labels, {}))
    for each in (queued, alone):
        each["metadata"]["uid"] = "1"
    rule = {"apiGroups": ["kueue.x-k8s.io"], "resources": ["workloads"], "verbs": ["list", "patch"]}
    rules, others = (cluster_objects(each)[0]["rules"] for each in (queued, alone))
    assert rules == [*others, rule]
    assert cluster_objects(queued, in_queue=False) == cluster_objects(alone)
    # Who makes it has to have it too, which `sp-ray plan` says where it is not so.
    more = {str(need) for need in agent_needs(queued)} - {str(need) for need in agent_needs(alone)}
    assert more == {"list workloads.kueue.x-k8s.io", "patch workloads.kueue.x-k8s.io"}
